"""One-shot pruners: magnitude, Wanda and SparseGPT behind one small interface.

A pruner sees one weight matrix and one input statistic, and returns the pruned weight with its
mask. Magnitude needs no statistic, Wanda the energy of each input channel, SparseGPT the whole
Gram matrix. SparseGPT also repairs: each removed weight is compensated by the ones to its right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from effllm.modules.calibration.statistics import Energy, Gram, Statistic
from effllm.modules.errors import ConfigError, NumericalError
from effllm.modules.ranges import PositiveFloat, PositiveInt
from effllm.modules.sparsity.patterns import Pattern, Scope, Unstructured


@dataclass(frozen=True)
class Pruned:
    """Result of pruning one matrix.

    Attributes:
        weight: (R, C) float32, exactly zero outside the mask.
        mask: (R, C) bool, True = kept.
        damping: relative damping that the factorisation needed; 0 where none is used.
    """

    weight: Tensor
    mask: Tensor
    damping: PositiveFloat = 0.0


class Pruner(Protocol):
    """What every pruner offers.

    `statistic` builds the input statistic that it wants, or is None; `knows_rows_alone` says that
    what it thinks of a row does not depend on the others, so that matrices may be stacked.
    """

    name: ClassVar[str]
    scope: ClassVar[Scope]
    statistic: ClassVar[Callable[..., Statistic] | None]
    knows_rows_alone: ClassVar[bool]

    def prune(self, weight: Tensor, statistic: Tensor | None, pattern: Pattern) -> Pruned:
        """Prune a (R, C) weight under `pattern`."""


class ScoringPruner(Pruner, Protocol):
    """A pruner that keeps the highest of its scores and changes no weight."""

    def score(self, weight: Tensor, energy: Tensor | None) -> Tensor:
        """(R, C) float32 from a weight and the (C,) mean squared inputs; larger is kept."""


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """Remove the smallest absolute weights of the matrix; change nothing else."""

    name: ClassVar[str] = "magnitude"
    scope: ClassVar[Scope] = "matrix"
    statistic: ClassVar[Callable[..., Statistic] | None] = None
    knows_rows_alone: ClassVar[bool] = True

    def score(self, weight: Tensor, energy: Tensor | None) -> Tensor:
        """|W|; `energy` is not used."""
        del energy
        return weight.to(torch.float32).abs()

    def prune(self, weight: Tensor, statistic: Tensor | None, pattern: Pattern) -> Pruned:
        """Score |W|; `statistic` is not used."""
        mask = pattern.mask(self.score(weight, statistic), scope=self.scope)
        return Pruned(weight.to(torch.float32) * mask, mask)


@dataclass(frozen=True, kw_only=True)
class Wanda:
    """Remove the smallest |W_rc| * ||X_c|| of each row; change nothing else.

    Source: Wanda (arXiv:2306.11695), lib/prune.py.
    """

    name: ClassVar[str] = "wanda"
    scope: ClassVar[Scope] = "row"
    statistic: ClassVar[Callable[..., Statistic] | None] = Energy
    knows_rows_alone: ClassVar[bool] = True

    def score(self, weight: Tensor, energy: Tensor | None) -> Tensor:
        """|W| * sqrt(energy)."""
        assert energy is not None
        return weight.to(torch.float32).abs() * energy.sqrt()

    def prune(self, weight: Tensor, statistic: Tensor | None, pattern: Pattern) -> Pruned:
        """Score |W| * sqrt(energy); `statistic` is the (C,) input energy."""
        mask = pattern.mask(self.score(weight, statistic), scope=self.scope)
        return Pruned(weight.to(torch.float32) * mask, mask)


@dataclass(frozen=True, kw_only=True)
class RelativeImportancePruner:
    """Remove the smallest (|W_rc| / sum_c |W| + |W_rc| / sum_r |W|) * ||X_c||^power of each row.

    Args:
        power: of the inputs' norm.

    Source: RIA (ICLR 2024), equation 4 and lib/prune.py.
    """

    power: PositiveFloat = 0.5
    name: ClassVar[str] = "ria"
    scope: ClassVar[Scope] = "row"
    statistic: ClassVar[Callable[..., Statistic] | None] = Energy
    knows_rows_alone: ClassVar[bool] = False

    def score(self, weight: Tensor, energy: Tensor | None) -> Tensor:
        """Relative importance times activation; rows and columns of zeros have none."""
        assert energy is not None
        size = weight.to(torch.float32).abs()
        smallest = torch.finfo(torch.float32).tiny
        rows = size / size.sum(dim=1, keepdim=True).clamp(min=smallest)
        columns = size / size.sum(dim=0, keepdim=True).clamp(min=smallest)
        return (rows + columns) * energy.sqrt() ** self.power

    def prune(self, weight: Tensor, statistic: Tensor | None, pattern: Pattern) -> Pruned:
        """`statistic` is the (C,) input energy."""
        mask = pattern.mask(self.score(weight, statistic), scope=self.scope)
        return Pruned(weight.to(torch.float32) * mask, mask)


@dataclass(frozen=True, kw_only=True)
class SparseGPT:
    """Optimal-brain-surgeon sweep from left to right with exact counts.

    Args:
        block_columns: columns per lazily updated block; also the comparison set (all rows x block)
            of unstructured patterns. A group pattern must divide it.
        damping: added to the diagonal of the Gram matrix, as a share of its mean over inputs that
            are ever different from zero.

    Source: SparseGPT (arXiv:2301.00774), algorithm 1 and sparsegpt/sparsegpt.py.
    Deviates: the reference removes one entry too many, plus ties, in unstructured blocks; here
        counts are exact. Its dead inputs get 1 on the diagonal, here the mean of the others, so
        that the damping is what it says. Damping grows tenfold, at most three times, when the
        factorisation fails; the value used is reported.
    """

    block_columns: PositiveInt = 128
    damping: PositiveFloat = 0.01
    name: ClassVar[str] = "sparsegpt"
    scope: ClassVar[Scope] = "matrix"
    statistic: ClassVar[Callable[..., Statistic] | None] = Gram
    knows_rows_alone: ClassVar[bool] = True

    def prune(
        self,
        weight: Tensor,
        statistic: Tensor | None,
        pattern: Pattern,
        mask: Tensor | None = None,
    ) -> Pruned:
        """Sweep over a (R, C) weight with its (C, C) Gram matrix.

        Args:
            weight: (R, C) float.
            statistic: (C, C) Gram matrix of the inputs.
            pattern: the pattern to reach.
            mask: (R, C) bool to impose; chosen on the way if None.

        Raises:
            NumericalError: if the Gram matrix cannot be factorised with 1000x the damping.
            ConfigError: if the block length is not a multiple of the group length.
        """
        assert statistic is not None
        group = getattr(pattern, "group", 1)
        if self.block_columns % group:
            raise ConfigError(
                f"block_columns={self.block_columns} of SparseGPT is not a multiple of the "
                f"pattern's group={group}; give a multiple as …pruner.block_columns"
            )
        weight = weight.to(torch.float32).clone()
        dead = statistic.diagonal() == 0
        weight[:, dead] = 0
        upper, damping = inverse_factor(statistic, self.damping)
        chosen = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.clone()
        columns = weight.shape[1]
        for start in range(0, columns, self.block_columns):
            stop = min(start + self.block_columns, columns)
            block = weight[:, start:stop].T.contiguous()  # (b, R): a column of W lies in one piece
            factor = upper[start:stop, start:stop]
            scale = factor.diagonal()
            removed = ~chosen[:, start:stop].T.contiguous()
            if mask is None and isinstance(pattern, Unstructured):
                removed = ~pattern.mask((block.T / scale).abs(), scope=self.scope).T.contiguous()
            errors = torch.empty_like(block)
            for column in range(stop - start):
                if mask is None and not isinstance(pattern, Unstructured) and column % group == 0:
                    run = slice(column, column + group)
                    score = (block[run].T / scale[run]).abs()
                    removed[run] = ~pattern.mask(score, scope=self.scope).T
                torch.mul(block[column] / scale[column], removed[column], out=errors[column])
                block[column:].addr_(factor[column, column:], errors[column], alpha=-1)
            weight[:, start:stop] = block.T
            chosen[:, start:stop] = ~removed.T
            weight[:, stop:].addmm_(errors.T, upper[start:stop, stop:], alpha=-1)
        return Pruned(weight * chosen, chosen, damping)


def inverse_factor(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor U of the damped inverse, H^-1 = U^T U.

    U_cc^2 is the c-th diagonal entry of the inverse of H restricted to columns >= c, which is what
    a left-to-right sweep needs.

    Args:
        gram: (C, C) Gram matrix; columns without energy get the mean energy of the others.
        damping: share of the mean diagonal that is added to the diagonal.

    Returns:
        (C, C) float32 factor, and the damping that was needed.

    Raises:
        NumericalError: if no damping up to 1000 times the given one suffices.
    """
    hessian = gram.to(torch.float32).clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    if dead.any():
        diagonal[dead] = 1.0 if dead.all() else diagonal[~dead].mean()
    mean = float(diagonal.mean())
    for factor in (1.0, 10.0, 100.0, 1000.0):
        damped = hessian.clone()
        damped.diagonal().add_(damping * factor * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            inverse = torch.cholesky_inverse(lower)
            upper, info = torch.linalg.cholesky_ex(inverse, upper=True)
            if int(info) == 0:
                return upper, damping * factor
    raise NumericalError(
        f"the Gram matrix ({gram.shape[0]} inputs) is not positive definite even with damping "
        f"{1000 * damping:g}; use more calibration tokens or a larger damping"
    )
