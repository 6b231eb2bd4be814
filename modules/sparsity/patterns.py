"""Sparsity patterns: which sets of weights compete, and how many of each set survive.

A pattern turns a score into a mask (True = kept) with exact counts. Unstructured patterns compare
inside a row or inside the whole matrix, as the method that uses them asks; group patterns (2:4,
4:8) always compare inside runs of consecutive inputs, as the hardware does.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from effllm.modules.ranges import Fraction, PositiveInt
from effllm.modules.sparsity.masks import matrix_mask, nm_mask, row_mask

Scope = Literal["row", "matrix"]


class Pattern(Protocol):
    """What every pattern offers."""

    @property
    def name(self) -> str:
        """Short name for tables, such as `2:4` or `50%`."""

    def mask(self, score: Tensor, *, scope: Scope) -> Tensor:
        """(R, C) score -> (R, C) bool, True = kept; `scope` only matters when unstructured."""

    def rows_are_independent(self, scope: Scope) -> bool:
        """Whether the mask of a row is the same whatever the other rows hold."""

    def check(self, columns: int) -> None:
        """Raise ValueError if a matrix with `columns` inputs cannot carry the pattern."""


@dataclass(frozen=True, kw_only=True)
class Unstructured:
    """Any weight may go; `ratio` of each comparison set is removed.

    Args:
        ratio: fraction removed, 0 <= ratio <= 1.
    """

    ratio: Fraction

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise ValueError(f"ratio must be between 0 and 1, got {self.ratio}")

    @property
    def name(self) -> str:
        """Name for tables, for example `50%`."""
        return f"{100 * self.ratio:g}%"

    def mask(self, score: Tensor, *, scope: Scope) -> Tensor:
        """Keep the highest scores of each row, or of the whole matrix."""
        return (row_mask if scope == "row" else matrix_mask)(score, ratio=self.ratio)

    def rows_are_independent(self, scope: Scope) -> bool:
        """Only if rows are compared within themselves."""
        return scope == "row"

    def check(self, columns: int) -> None:
        """Every matrix can be pruned without structure."""


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """`keep` of every `group` consecutive inputs of a row survive (2:4 is keep=2, group=4).

    Args:
        keep: weights kept in each group, 0 < keep < group.
        group: consecutive inputs per group; must divide the number of inputs of a layer.
    """

    keep: PositiveInt
    group: PositiveInt

    def __post_init__(self) -> None:
        if not 0 < self.keep < self.group:
            raise ValueError(f"need 0 < keep < group, got keep={self.keep}, group={self.group}")

    @property
    def name(self) -> str:
        """Zeros:group, as the field writes it: 2:4 and 4:8."""
        return f"{self.group - self.keep}:{self.group}"

    def mask(self, score: Tensor, *, scope: Scope) -> Tensor:
        """Keep the highest scores of each group; `scope` plays no part."""
        del scope
        return nm_mask(score, keep=self.keep, group=self.group)

    def rows_are_independent(self, scope: Scope) -> bool:
        """Always: a group lies within a row."""
        del scope
        return True

    def check(self, columns: int) -> None:
        """Refuse a layer whose inputs do not divide into groups."""
        if columns % self.group:
            raise ValueError(f"{columns} inputs do not divide into groups of {self.group}")
