"""Attention of a few new tokens over a long cache, without copies of shared keys.

With grouped queries PyTorch's kernel splits its work by query head, so a decoding step reads every
key and value once per query head; and where there is a mask, transformers first copies keys and
values for each of them. Folding a group's heads into rows of one query asks the same question once
per key head: the same numbers, without copies.
"""

from typing import Any

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
        module: the attention layer.
        query: (B, H, n, D).
        key: (B, Hkv, L, D), H a multiple of Hkv.
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
    groups = heads // key.shape[1]
    prefill = attention_mask is None and rows > 1
    per_head = attention_mask is not None and attention_mask.shape[1] > 1
    unknown = any(kwargs.get(name) is not None for name in ("position_bias", "softcap"))
    if groups == 1 or prefill or per_head or unknown:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    mask = None if attention_mask is None else attention_mask.repeat(1, 1, groups, 1)
    output = F.scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups * rows, size),
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return output.reshape(batch, heads, rows, size).transpose(1, 2).contiguous(), None


def group_queries(model: PreTrainedModel) -> None:
    """Let a model that attends by `sdpa` do so by `grouped_attention`; others stay as they are."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(GROUPED)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
