"""A target's own greedy text for many prompts at once, and what it found likely at every place.

This is what its draft model learns from. The likely tokens cost almost nothing while the text is
written; reading every text again for them would take as long as writing it.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effllm.modules.inference.attention import group_queries
from effllm.modules.inference.cache import SlotCache

_PREFILL = 8  # tokens of each prompt per pass: logits of whole prompts take gigabytes


@torch.no_grad()
def write_greedily(
    model: PreTrainedModel,
    prompts: Tensor,
    max_new_tokens: int,
    ends: frozenset[int],
    top: int,
) -> tuple[list[list[int]], Tensor, Tensor]:
    """Continue prompts of equal length, one token of all of them per pass.

    Args:
        model: the target; attends as a `ModelRunner` does from now on.
        prompts: (B, T) token ids, without padding.
        max_new_tokens: budget per prompt, at least 1.
        ends: token ids that end a text.
        top: likely tokens noted at every place.

    Returns:
        B lists of new tokens, an ending token included; (B, T + n - 1, top) token ids, the most
        likely first, of which row t is about token t + 1; and their probabilities,
        float32 with the precision of the model's dtype.
    """
    group_queries(model)
    cache = SlotCache(int(model.config.get_text_config(decoder=True).num_hidden_layers))

    def judge(fed: Tensor) -> Tensor:
        start = cache.get_seq_length()
        positions = torch.arange(start, start + fed.shape[1], device=fed.device)
        logits = model(
            input_ids=fed,
            position_ids=positions.expand(len(fed), -1),
            past_key_values=cache,
            use_cache=True,
        ).logits
        best = logits.topk(top, dim=-1).indices
        likely.append((best.cpu(), logits.softmax(dim=-1).gather(-1, best).float().cpu()))
        choice: Tensor = logits[:, -1].argmax(dim=-1, keepdim=True)
        return choice

    likely: list[tuple[Tensor, Tensor]] = []
    for part in prompts.to(model.device).split(_PREFILL, dim=1):
        chosen = judge(part)
    fresh = [chosen]
    ending = torch.tensor(sorted(ends), device=model.device)
    alive = ~torch.isin(chosen[:, 0], ending)
    while len(fresh) < max_new_tokens and bool(alive.any()):
        chosen = judge(chosen)
        fresh.append(chosen)
        alive &= ~torch.isin(chosen[:, 0], ending)
    texts = [_cut(row, ends) for row in torch.cat(fresh, dim=1).tolist()]
    ids, probabilities = (torch.cat(parts, dim=1) for parts in zip(*likely, strict=True))
    return texts, ids, probabilities


def _cut(tokens: list[int], ends: frozenset[int]) -> list[int]:
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]
