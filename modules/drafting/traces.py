"""A target's own greedy text for many prompts at once: what its draft model learns from."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effllm.modules.decoding.cache import SlotCache


@torch.no_grad()
def greedy_batch(
    model: PreTrainedModel, prompts: Tensor, max_new_tokens: int, ends: frozenset[int]
) -> list[list[int]]:
    """Continue prompts of equal length, one token of all of them per pass.

    Args:
        model: the target.
        prompts: (B, T) token ids, without padding.
        max_new_tokens: budget per prompt.
        ends: token ids that end a text.

    Returns:
        B lists of new tokens; an ending token is included.
    """
    config = model.config.get_text_config(decoder=True)
    cache = SlotCache(int(config.num_hidden_layers))
    fed = prompts.to(model.device)
    fresh = torch.empty(len(prompts), 0, dtype=torch.long, device=model.device)
    ending = torch.tensor(sorted(ends), device=model.device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    while fresh.shape[1] < max_new_tokens and bool(alive.any()):
        start = cache.get_seq_length()
        positions = torch.arange(start, start + fed.shape[1], device=model.device)
        logits = model(
            input_ids=fed,
            position_ids=positions.expand(len(fed), -1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        fed = logits.argmax(dim=-1, keepdim=True)
        fresh = torch.cat([fresh, fed], dim=1)
        alive &= ~torch.isin(fed[:, 0], ending)
    return [_cut(row, ends) for row in fresh.tolist()]


def _cut(tokens: list[int], ends: frozenset[int]) -> list[int]:
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]
