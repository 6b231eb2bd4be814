"""What the queries of an observation window say about the channels of the keys.

A key entry matters as much as the queries that meet it. The weight of a channel is the norm of the
window's queries in it, one figure per batch row, key head and channel.
"""

from typing import Literal

import torch
from torch import Tensor

GroupReduce = Literal["rms", "mean_signed"]

_FLOOR = 1e-6  # of a head's largest weight: no channel weighs nothing


def channel_weight(queries: Tensor, heads: int, *, reduce: GroupReduce = "rms") -> Tensor:
    """Weight n of every key channel, its largest per head being 1.

    Selection and recovery do not change when all weights of a head are multiplied by a number, so
    they are scaled to stay far from the limits of 16 bits.

    Args:
        queries: (B, H, W, D) of the last W positions, after rotation and normalisation.
        heads: key heads (Hkv); divides H.
        reduce: `rms` over the heads of a group, or `mean_signed`: average the query vectors of a
            group first, which may cancel.

    Returns:
        (B, Hkv, D) float32, from 1e-6 to 1.

    Source: SparK, official `spark_press.py` (`mean_signed`); rms over the group ours.
    """
    batch, _, window, channels = queries.shape
    grouped = queries.float().reshape(batch, heads, -1, window, channels)
    if reduce == "mean_signed":
        grouped = grouped.mean(dim=2, keepdim=True)
    weight = grouped.square().mean(dim=2).sum(dim=2).sqrt()  # (B, Hkv, D)
    largest = weight.amax(dim=-1, keepdim=True)
    even = torch.ones_like(weight)
    return torch.where(largest > 0, (weight / largest).clamp_min(_FLOOR), even)
