"""What pruned entries of a key are taken to be: sign x gain of the token x unit of the channel.

Nothing but the gain and, if wanted, one sign bit per entry is stored for a token.

| family   | gain of a token          | unit of a channel | keeps                     |
|----------|--------------------------|-------------------|---------------------------|
| code     | sqrt(mean n_j k_j^2)     | n_j^(-1/2)        | sum n_j k_j^2, the energy |
| paper    | mean n_j |k_j|           | 1 / n_j           | sum n_j |k_j|, least squares |
| constant | none (1), no signs       | 0.01              |                           |
| zero     | none (1), no signs       | 0                 |                           |

Means are over the pruned channels. Source: SparK, official code and paper; docs/papers/spark.md.
"""

from typing import Literal

import torch
from torch import Generator, Tensor

Recovery = Literal["code", "paper", "constant", "zero"]

CONSTANT = 0.01  # the paper's motivation section


def channel_unit(weight: Tensor, family: Recovery) -> Tensor:
    """(B, Hkv, D) unit of every channel from its weight, float32."""
    if family == "code":
        return weight.rsqrt()
    if family == "paper":
        return weight.reciprocal()
    return torch.full_like(weight, CONSTANT if family == "constant" else 0.0)


def token_gain(keys: Tensor, keep: Tensor, weight: Tensor, family: Recovery) -> Tensor | None:
    """Gain of every token, or None where pruned entries are a constant.

    Args:
        keys: (B, Hkv, S, D).
        keep: (B, Hkv, S, D) bool.
        weight: (B, Hkv, D).
        family: see above.

    Returns:
        (B, Hkv, S) float32; 0 where nothing is pruned.
    """
    if family in ("zero", "constant"):
        return None
    size, weight = keys.float().abs(), weight.unsqueeze(-2)
    size = weight * (size.square() if family == "code" else size)
    pruned = (~keep).sum(dim=-1).clamp_min(1)
    mean = size.masked_fill_(keep, 0.0).sum(dim=-1) / pruned
    return mean.sqrt() if family == "code" else mean


def sampled_magnitudes(
    keys: Tensor,
    keep: Tensor,
    weight: Tensor,
    *,
    family: Literal["gaussian", "exponential"],
    generator: Generator,
) -> Tensor:
    """Random magnitudes of pruned entries in the order of their true saliency: simulation only.

    Storing which draw belongs to which channel would take more bits than the entries themselves,
    so no packed format exists. Saliency is n |k|; draws have the mean (and the spread, if Gaussian)
    of all D saliencies of the token and do not exceed the smallest kept one.

    Returns:
        (B, Hkv, S, D) float32, 0 where a channel is kept.

    Source: SparK, official code (`0.6556`, `0.7556` families), in our saliency.
    """
    scores = weight.unsqueeze(-2) * keys.float().abs()
    mean = scores.mean(dim=-1, keepdim=True)
    if family == "exponential":
        draws = torch.empty_like(scores).exponential_(generator=generator) * mean
    else:
        spread = scores.std(dim=-1, keepdim=True)
        draws = torch.empty_like(scores).normal_(generator=generator) * spread + mean
    threshold = scores.masked_fill(~keep, float("inf")).amin(dim=-1, keepdim=True)
    draws = draws.clamp_min(0.0).minimum(threshold).sort(dim=-1, descending=True).values
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (draws.gather(-1, rank) / weight.unsqueeze(-2)).masked_fill_(keep, 0.0)
