"""The shape of a draft model: a few of the target's layers, and a head for the usual tokens."""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effllm.modules.modeling.blocks import decoder_blocks


def with_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A copy of a model that has only the given decoder blocks, with a head of its own.

    Args:
        model: the target; not changed.
        layers: rising block numbers.

    Raises:
        ValueError: if the numbers do not rise or the model has no such block.
    """
    blocks = decoder_blocks(model)
    if not layers or list(layers) != sorted(set(layers) & set(range(len(blocks)))):
        raise ValueError(f"need rising layer numbers below {len(blocks)}, got {list(layers)}")
    memo: dict[int, object] = {
        id(blocks): nn.ModuleList(copy.deepcopy(blocks[index]) for index in layers)
    }
    draft = copy.deepcopy(model, memo)
    draft.config.num_hidden_layers = len(layers)
    if getattr(draft.config, "layer_types", None):
        draft.config.layer_types = [draft.config.layer_types[index] for index in layers]
    for place, block in enumerate(decoder_blocks(draft)):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place  # type: ignore[assignment] # nn.Module types attributes
    head = draft.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    draft.config.tie_word_embeddings = False
    return draft


class ReducedHead(nn.Module):
    """An output head for some of the tokens only.

    Args:
        head: the full head, (V, C).
        token_ids: (n,) the token of each row that is kept.
    """

    token_ids: Tensor

    def __init__(self, head: nn.Linear, token_ids: Tensor) -> None:
        super().__init__()
        self.rows = nn.Linear(
            head.in_features, len(token_ids), bias=head.bias is not None, dtype=head.weight.dtype
        ).to(head.weight.device)
        with torch.no_grad():
            self.rows.weight.copy_(head.weight[token_ids])
            if head.bias is not None:
                self.rows.bias.copy_(head.bias[token_ids])
        self.register_buffer("token_ids", token_ids.to(head.weight.device))

    @property
    def weight(self) -> Tensor:
        """(n, C)."""
        return self.rows.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., n) logits of `token_ids`."""
        logits: Tensor = self.rows(hidden)
        return logits


def reduce_vocabulary(model: PreTrainedModel, token_ids: Tensor) -> PreTrainedModel:
    """Let a model predict only some tokens, in place; it still reads all of them.

    Args:
        model: a causal language model.
        token_ids: (n,) rising token ids.
    """
    model.set_output_embeddings(ReducedHead(model.get_output_embeddings(), token_ids))
    return model


@torch.no_grad()
def restore_vocabulary(model: PreTrainedModel, head: nn.Linear) -> None:
    """Undo `reduce_vocabulary`: the reduced head's rows go into the full head, in place.

    Args:
        model: with a reduced head.
        head: (V, C) the full head; rows of other tokens stay as they are.
    """
    reduced = model.get_output_embeddings()
    head.to(reduced.weight.device).weight[reduced.token_ids] = reduced.weight
    if head.bias is not None:
        head.bias[reduced.token_ids] = reduced.rows.bias
    model.set_output_embeddings(head)


def usual_tokens(texts: Iterable[Sequence[int]], count: int, always: Iterable[int]) -> Tensor:
    """The most frequent tokens of some texts.

    Args:
        texts: token ids.
        count: tokens wanted; fewer if the texts have fewer.
        always: tokens that are taken in any case, such as ends.

    Returns:
        (n <= count,) rising token ids.
    """
    needed = set(always)
    counts = Counter(token for text in texts for token in text if token not in needed)
    usual = [token for token, _ in counts.most_common(max(0, count - len(needed)))]
    return torch.tensor(sorted([*needed, *usual]), dtype=torch.long)
