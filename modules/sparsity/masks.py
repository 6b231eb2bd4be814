"""Masks with exact counts, True = kept.

Counts never depend on a threshold: ties (common in bf16 magnitudes) go to the lower index, so a
mask has the same number of kept weights whatever the values and does not depend on the sort.
"""

import math

import numpy as np
import torch
from torch import Tensor

_RANK_LIMIT = 8  # up to this group length, pairwise ranks are faster than sorting


def nm_mask(score: Tensor, *, keep: int, group: int) -> Tensor:
    """Keep the `keep` highest scores in each run of `group` consecutive inputs.

    Ties go to the lower index, so that results do not depend on the sort algorithm.

    Args:
        score: (R, C) float; larger is more important; NaN is not allowed.
        keep: kept entries per group, 0 < keep < group.
        group: group length along C; must divide C.

    Returns:
        (R, C) bool, True = kept; every group has exactly `keep` True entries.

    Raises:
        ValueError: if `group` does not divide C, or keep is out of range.

    Source: Wanda, N:M variant (arXiv:2306.11695); tie rule ours.
    """
    rows, columns = score.shape
    if columns % group:
        raise ValueError(f"{columns} inputs do not divide into groups of {group}")
    if not 0 < keep < group:
        raise ValueError(f"need 0 < keep < group, got keep={keep}, group={group}")
    if group > _RANK_LIMIT:
        return _keep_top(score.reshape(-1, group), keep).reshape(rows, columns)
    # Rank inside a group = number of entries that beat this one; (group, R*C/group).
    entries = score.reshape(-1, group).T.contiguous()
    rank = torch.zeros_like(entries, dtype=torch.int8)
    for late in range(1, group):
        for early in range(late):
            late_wins = entries[late] > entries[early]
            rank[early] += late_wins
            rank[late] += ~late_wins
    return (rank < keep).T.reshape(rows, columns)


def row_mask(score: Tensor, *, ratio: float) -> Tensor:
    """Remove the floor(C * ratio) lowest scores of every row.

    Args:
        score: (R, C) float, no NaN.
        ratio: fraction removed, 0..1.

    Returns:
        (R, C) bool, True = kept.

    Source: Wanda (arXiv:2306.11695), per-output comparison groups.
    """
    columns = score.shape[1]
    return _keep_top(score, columns - math.floor(columns * ratio))


def matrix_mask(score: Tensor, *, ratio: float) -> Tensor:
    """Remove the floor(R * C * ratio) lowest scores of the whole matrix.

    Args:
        score: (R, C) float, no NaN.
        ratio: fraction removed, 0..1.

    Returns:
        (R, C) bool, True = kept.
    """
    flat = score.reshape(1, -1)
    total = flat.shape[1]
    return _keep_top(flat, total - math.floor(total * ratio)).reshape(score.shape)


def _keep_top(score: Tensor, keep: int) -> Tensor:
    """Exactly `keep` True per row of (R, C); ties go to the lower index."""
    columns = score.shape[1]
    if keep <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if keep >= columns:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = score.kthvalue(columns - keep + 1, dim=1, keepdim=True).values
    above = score > threshold
    tied = score == threshold
    missing = keep - above.sum(dim=1, keepdim=True)
    return above | (tied & (tied.cumsum(dim=1) <= missing))


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a (R, C) bool mask to (R, ceil(C / 8)) uint8, eight weights a byte, high bit first."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1))


def unpack_mask(packed: Tensor, columns: int) -> Tensor:
    """Undo `pack_mask`: (R, ceil(C / 8)) uint8 -> (R, C) bool."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=columns)).bool()
