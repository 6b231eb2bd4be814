"""Which channels of a key are kept: per token, shared by a block of tokens, or as many as needed.

Per token the squared error of the window's logits is about the sum of n_j^2 k_j^2 over the pruned
channels, so the T largest n_j |k_j| should stay; the official code ranks by n_j k_j^2 instead.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Saliency = Literal["code", "paper", "magnitude"]


def kept_channels(channels: int, ratio: float) -> int:
    """Channels kept per key (T) when a share of them is pruned.

    Raises:
        ValueError: unless 0 <= ratio < 1 and a channel is left.

    Source: T = D - floor(r D), as the code; the paper rounds the other way.
    """
    kept = channels - math.floor(ratio * channels + 1e-9) if 0 <= ratio < 1 else 0
    if kept < 1:
        raise ValueError(
            f"a pruning ratio of {ratio:g} leaves none of {channels} channels; use 0 <= ratio < 1"
        )
    return kept


def saliency(keys: Tensor, weight: Tensor, rule: Saliency = "code") -> Tensor:
    """How much each entry of each key matters.

    Args:
        keys: (B, Hkv, S, D).
        weight: (B, Hkv, D) of `channel_weight`.
        rule: `paper` n |k| (minimises the error above), `code` n k^2 (the official code, ranks by
            |k| sqrt(n)), `magnitude` |k|.

    Returns:
        (B, Hkv, S, D) float32, not negative.
    """
    keys = keys.float()
    if rule == "magnitude":
        return keys.abs()
    weight = weight.unsqueeze(-2)
    return weight * (keys.square() if rule == "code" else keys.abs())


def keep_largest(scores: Tensor, kept: int, *, block: int = 1) -> Tensor:
    """Keep the `kept` highest scores of every token, or of every block of tokens together.

    Ties go to the lower channel.

    Args:
        scores: (..., S, D), not negative.
        kept: channels kept (T).
        block: tokens that share one choice, by the sum of their squared scores. With all tokens in
            one block and the saliency of the paper this is ThinK's choice.

    Returns:
        (..., S, D) bool, exactly T True per token.
    """
    tokens = scores.shape[-2]
    if block > 1:
        pieces = scores.square().split(block, dim=-2)
        shared = [one.sum(dim=-2, keepdim=True).expand_as(one) for one in pieces]
        scores = torch.cat(shared, dim=-2) if tokens else scores
    # A partial sort finds the threshold; a full stable one would take three times as long.
    threshold = scores.topk(kept, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    keep = scores >= threshold
    if bool((keep.sum(dim=-1) == kept).all()):
        return keep
    above = scores > threshold
    missing = kept - above.sum(dim=-1, keepdim=True)
    tied = keep & ~above
    return above | (tied & (tied.cumsum(dim=-1) <= missing))


def channels_for_share(scores: Tensor, share: float) -> Tensor:
    """SparK-p: the fewest channels whose scores exceed a share of a token's total.

    Args:
        scores: (..., D), not negative.
        share: 0 < share < 1; the paper's and the code's is 0.99.

    Returns:
        (...) int64, 1 to D.
    """
    ordered = scores.sort(dim=-1, descending=True).values.double().cumsum(dim=-1)
    within = ordered <= share * ordered[..., -1:]
    return (within.sum(dim=-1) + 1).clamp_max(scores.shape[-1])


def grouped_channels(scores: Tensor, *, share: float = 0.99, groups: int = 5) -> Tensor:
    """SparK-g: tokens that need few channels for a share of their scores keep few.

    Args:
        scores: (..., D), not negative.
        share: as in `channels_for_share`.
        groups: number of groups, of equal width in needed channels.

    Returns:
        (...) int64: a token of group i of g keeps the share (i - 1/2) / g of its channels, at
        least one. With five groups these are 10, 30, 50, 70 and 90 %.

    Source: official code, `dynamic_group`.
    """
    channels = scores.shape[-1]
    needed = channels_for_share(scores, share)
    group = (needed * groups + channels - 1) // channels  # 1 to g
    return ((2 * group - 1) * channels // (2 * groups)).clamp_min(1)


def keep_counts(scores: Tensor, counts: Tensor) -> Tensor:
    """Keep the `counts` highest scores of each token: (..., D) and (...) -> (..., D) bool."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    within = rank < counts.unsqueeze(-1)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, within)
