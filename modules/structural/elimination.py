"""Local pruning of one key matrix: greedy elimination of units with exact least-squares repair.

With B = W^T (C, R), inputs X and H = X^T X + damping, the best weights on a kept set K are
V_K = H_KK^-1 G_K with G = H B, and the error is err(K) = tr(B^T H B) - tr(V_K^T G_K). Removing a
unit g raises err/2 by exactly q_g = tr(V_g^T (P_gg)^-1 V_g) / 2 with P = H_KK^-1; the method also
looks at f_g = tr(V_g^T G_g), the unit's share of the explained output. One elimination to the
sparsest level gives all levels, each a subset of the one before. Everything is float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from effllm.modules.errors import ConfigError, NumericalError
from effllm.modules.ranges import PositiveFloat, PositiveInt

Score = Literal["official", "paper", "second"]

_RAISES = 4  # times that damping may grow tenfold before the matrix counts as hopeless


@dataclass(frozen=True)
class Level:
    """One sparsity of a key matrix.

    Attributes:
        removed: removed units.
        kept: (k,) int64, rising unit numbers.
        weight: (R, k * size) on the kept channels, in the dtype of the original.
        error: err(K) / tr(B^T H B), the lost share of the output energy.
    """

    removed: int
    kept: Tensor
    weight: Tensor
    error: float


@dataclass(frozen=True)
class Elimination:
    """All levels of a key matrix.

    Attributes:
        order: removed units, first to last.
        levels: rising in removed units.
        damping: relative damping that was needed.
    """

    order: list[int]
    levels: list[Level]
    damping: PositiveFloat


@dataclass(frozen=True, kw_only=True)
class LocalPruner:
    """Removes units from key matrices.

    Args:
        score: `official` q + f per unit (the released code); `paper` |f| + q per channel, averaged
            over a unit; `second` q alone (ZipLM, OSSCAR without its swaps).
        head_chunk: heads (or key-value groups) removed between two rankings.
        neuron_chunk: neurons removed between two rankings.
        damping: share of the mean diagonal of X^T X added to it.
        refit: least squares on the kept units; false keeps the original weights.

    Source: Týr-the-Pruner, section 2.2 and local_pruner.py (scores, damping); one pass for all
        levels is ours, as in DarwinLM.
    Deviates: Algorithm 1 line 8 adds the refit to the old weights; we assign it, as the code does.
        The code counts rounds where the paper counts units per round: units here.
    """

    score: Score = "official"
    head_chunk: PositiveInt = 1
    neuron_chunk: PositiveInt = 16
    damping: PositiveFloat = 0.01
    refit: bool = True

    def __post_init__(self) -> None:
        if self.score not in ("official", "paper", "second"):
            raise ConfigError(f"score: official, paper or second, found {self.score!r}")
        if min(self.head_chunk, self.neuron_chunk) < 1 or self.damping <= 0:
            raise ConfigError("chunks must be at least 1 and damping above 0")

    def eliminate(
        self, weight: Tensor, gram: Tensor, *, size: int, removals: Sequence[int]
    ) -> Elimination:
        """All wanted levels of one key matrix.

        Args:
            weight: (R, C) original W.
            gram: (C, C) X^T X up to a factor, which changes nothing.
            size: channels per unit; divides C.
            removals: rising numbers of removed units, one per level.

        Raises:
            NumericalError: if X^T X stays indefinite under much damping.
        """
        units, chunk = weight.shape[1] // size, self.neuron_chunk if size == 1 else self.head_chunk
        rising = list(removals) == sorted(set(removals))
        if not rising or not 0 <= min(removals) <= max(removals) <= units:
            raise ValueError(f"removals must rise within 0..{units}, got {list(removals)}")
        if not bool(torch.isfinite(weight).all()):
            raise NumericalError("the weights hold NaN or infinity")
        dense, gram = weight.double().T.clone(), gram.double()
        dead = gram.diagonal() == 0
        dense[dead] = 0
        hessian, factor, used = damped(gram, self.damping)
        target = hessian @ dense  # G
        total = float((dense * target).sum())
        state = Remaining(torch.cholesky_inverse(factor), dense.clone(), target, size)
        state.free = (dense == 0).all(dim=1).view(units, size).all(dim=1)
        order: list[int] = []
        levels = []
        for removed in removals:
            while len(order) < removed:
                order += state.remove(self.score, min(chunk, removed - len(order)))
            state.shrink()
            kept = state.units
            levels.append(self._level(weight, hessian, dense, target, kept, size, total, removed))
        return Elimination(order, levels, used)

    def _level(
        self,
        weight: Tensor,
        hessian: Tensor,
        dense: Tensor,
        target: Tensor,
        kept: Tensor,
        size: int,
        total: float,
        removed: int,
    ) -> Level:
        if removed == 0:
            return Level(0, kept, weight.clone(), 0.0)
        rows = (kept[:, None] * size + torch.arange(size)).reshape(-1)
        values = dense[rows]
        if self.refit and len(rows):
            factor = _factor(hessian[rows][:, rows])
            values = torch.cholesky_solve(target[rows], factor)  # V_K = H_KK^-1 G_K
            error = total - float((values * target[rows]).sum())
        else:
            difference = dense.clone()
            difference[rows] = 0
            error = float((difference * (hessian @ difference)).sum())
        if not bool(torch.isfinite(values).all()):
            raise NumericalError(f"the repair of {len(kept)} kept units is not finite")
        share = max(error, 0.0) / total if total > 0 else 0.0
        return Level(removed, kept, values.T.to(weight.dtype).contiguous(), share)


class Remaining:
    """P = H_KK^-1, V and G of the units that are left."""

    def __init__(self, inverse: Tensor, values: Tensor, target: Tensor, size: int) -> None:
        self.inverse, self.values, self.target, self.size = inverse, values, target, size
        self.units = torch.arange(len(values) // size)
        self.free = torch.zeros(len(self.units), dtype=torch.bool)
        self.gone = torch.zeros(len(self.units), dtype=torch.bool)

    def remove(self, score: Score, count: int) -> list[int]:
        """Take out the units with the lowest scores; their numbers."""
        scores = unit_scores(self.inverse, self.values, self.target, self.size, score, ~self.gone)
        scores[self.free] = -torch.inf  # their inputs or their weights are all zero
        scores[self.gone] = torch.inf
        chosen = torch.argsort(scores, stable=True)[:count]
        rows = (chosen[:, None] * self.size + torch.arange(self.size)).reshape(-1)
        columns = self.inverse[:, rows]
        step = torch.cholesky_solve(columns.T, _factor(columns[rows]))  # (P_RR)^-1 P_R:
        self.values -= step.T @ self.values[rows]
        self.inverse -= columns @ step
        self.values[rows] = 0
        self.inverse[rows] = 0
        self.inverse[:, rows] = 0
        self.gone[chosen] = True
        return [int(one) for one in self.units[chosen]]

    def shrink(self) -> None:
        """Forget the removed units, and with them their share of the work."""
        left = (~self.gone).nonzero()[:, 0]
        rows = (left[:, None] * self.size + torch.arange(self.size)).reshape(-1)
        inverse = self.inverse[rows][:, rows]
        self.inverse = (inverse + inverse.T) / 2
        self.values, self.target = self.values[rows], self.target[rows]
        self.units, self.free, self.gone = self.units[left], self.free[left], self.gone[left]


def unit_scores(
    inverse: Tensor, values: Tensor, target: Tensor, size: int, score: Score, active: Tensor
) -> Tensor:
    """What removing each unit costs, by one of the three measures.

    Args:
        inverse: (C, C) P = H_KK^-1, zero for removed channels.
        values: (C, R) V.
        target: (C, R) G = H B.
        size: channels per unit.
        score: see `LocalPruner`.
        active: (units,) bool, units to be scored.

    Returns:
        (units,) float64; anything for units that are not active.
    """
    units = len(values) // size
    first = (values * target).sum(dim=1)  # f per channel
    if score == "paper" or size == 1:
        diagonal = inverse.diagonal().clamp_min(1e-12)
        second = values.square().sum(dim=1) / (2 * diagonal)
        if score == "paper":
            return (first.abs() + second).view(units, size).mean(dim=1)
    else:
        second = values.new_zeros(units, size)
        places = torch.arange(units * size).view(units, size)[active]
        blocks = inverse[places[:, :, None], places[:, None, :]]  # (active, size, size)
        weights = values[places]  # (active, size, R)
        solved = torch.cholesky_solve(weights, _factor(blocks))
        second[active, 0] = (weights * solved).sum(dim=(1, 2)) / 2
    costs = second.view(units, size).sum(dim=1)
    return costs if score == "second" else costs + first.view(units, size).sum(dim=1)


def _factor(matrices: Tensor) -> Tensor:
    """Cholesky factors of (..., n, n) parts of H or of P.

    Raises:
        NumericalError: if one is indefinite.
    """
    factors, info = torch.linalg.cholesky_ex(matrices)
    if bool(info.any()):
        raise NumericalError("X^T X or its inverse lost its definiteness; raise the damping")
    return factors


def damped(gram: Tensor, damping: float) -> tuple[Tensor, Tensor, float]:
    """H = A + damping * mean(diag A), its Cholesky factor, and the damping that it took.

    Raises:
        NumericalError: if it is indefinite even with ten thousand times the damping.
    """
    mean = float(gram.diagonal().mean())
    if not mean > 0:
        raise NumericalError("no input of this layer was ever different from zero")
    for power in range(_RAISES + 1):
        used = damping * 10**power
        hessian = gram + used * mean * torch.eye(len(gram), dtype=gram.dtype)
        factor, info = torch.linalg.cholesky_ex(hessian)
        if int(info) == 0:
            return hessian, factor, used
    raise NumericalError(
        f"X^T X is not positive definite even with damping {used:g}; give more or cleaner "
        "calibration text, or budget.dtype=float32"
    )
