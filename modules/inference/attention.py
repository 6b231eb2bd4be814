"""Attention of a few new tokens over a long cache, without copies of shared keys.

With grouped queries PyTorch's kernel splits its work by query head, so a decoding step reads every
key and value once per query head; and where there is a mask, transformers first copies keys and
values for each of them. Folding a group's heads into rows of one query asks the same question once
per key head: the same numbers, without copies. Groups of a compact model may be uneven; the
smaller ones are filled up with rows that nobody reads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "sdpa_grouped"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, the query heads of a group as rows of one query.

    Args:
        module: the attention layer; with uneven groups, its `kv_index` names each head's key head.
        query: (B, H, n, D).
        key: (B, Hkv, L, D), H a multiple of Hkv unless groups are uneven.
        value: (B, Hkv, L, D).
        attention_mask: (B or 1, 1, n, L) bool or additive; None if all keys are seen (n = 1) or if
            this is a prefill, which goes to transformers' own function.
        dropout: as in transformers, like the rest.
        scaling: factor of the scores; 1 / sqrt(D) if None.
        **kwargs: passed on to transformers.

    Returns:
        (B, n, H, D), and no weights.
    """
    batch, heads, rows, size = query.shape
    own = key.shape[1]
    index = getattr(module, "kv_index", None)
    taken, places = (None, None) if index is None else _filled(tuple(index), own, query.device)
    groups = heads // own if taken is None else len(taken) // own
    prefill = attention_mask is None and rows > 1
    per_head = attention_mask is not None and attention_mask.shape[1] > 1
    unknown = any(kwargs.get(name) is not None for name in ("position_bias", "softcap"))
    if (groups == 1 and index is None) or prefill or per_head or unknown:
        if index is not None:
            key, value = key[:, index], value[:, index]
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    mask = None if attention_mask is None else attention_mask.repeat(1, 1, groups, 1)
    if taken is not None:
        query = query.index_select(1, taken)
    output = F.scaled_dot_product_attention(
        query.reshape(batch, own, groups * rows, size),
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
    )
    output = output.reshape(batch, own * groups, rows, size)
    if places is not None:
        output = output.index_select(1, places)
    return output.transpose(1, 2).contiguous(), None


@lru_cache(maxsize=1024)
def _filled(index: tuple[int, ...], own: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which head stands at each place of equal groups, and the place of each head."""
    readers = [[head for head, read in enumerate(index) if read == key] for key in range(own)]
    most = max(map(len, readers))
    taken = [head for group in readers for head in group + [0] * (most - len(group))]
    places = [read * most + readers[read].index(head) for head, read in enumerate(index)]
    return torch.tensor(taken, device=device), torch.tensor(places, device=device)


def group_queries(model: PreTrainedModel) -> None:
    """Let a model that attends by `sdpa` do so by `grouped_attention`; others stay as they are."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(GROUPED)
        modules: list[Any] = list(model.modules())
        for module in modules:
            if hasattr(module, "kv_index_reader"):
                module.kv_index_reader = GROUPED


@contextmanager
def grouped_queries(model: PreTrainedModel) -> Iterator[None]:
    """`group_queries` for a while, for models with even groups."""
    before = model.config._attn_implementation
    group_queries(model)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
