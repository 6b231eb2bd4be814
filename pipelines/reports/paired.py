"""Arms on the same examples: means, changes and ratios, with intervals over these examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from effllm.modules.evaluation.intervals import Interval, Values, estimate

Rows = list[dict[str, Any]]
_SHARES = frozenset({"agree", "correct", "distinct", "score"})  # between 0 and 1


@dataclass(frozen=True)
class Paired:
    """Rows of arms, in the order of the examples that all of them saw.

    Attributes:
        arms: arm -> a row for each example.
        resamples: of the bootstrap.
    """

    arms: Mapping[str, Rows]
    resamples: int

    def values(self, arm: str, *keys: str) -> Values:
        """(examples, keys) numbers of an arm; NaN where a row has none."""
        return np.array([[row[key] for key in keys] for row in self.arms[arm]], dtype=np.float64)

    def knows(self, arm: str, *keys: str) -> bool:
        """Whether the rows of an arm have these values."""
        return all(key in self.arms[arm][0] for key in keys)

    def mean(self, arm: str, key: str) -> Interval:
        """Mean over examples of what is never negative."""
        bounds = (0, 1) if key in _SHARES else (0, np.inf)
        return estimate(self.values(arm, key)[:, 0], bounds=bounds, resamples=self.resamples)

    def change(
        self,
        arm: str,
        other: str,
        key: str,
        transform: Callable[[Values], Values] = lambda means: means,
    ) -> Interval:
        """Mean difference to another arm; `transform` is applied to the mean."""
        change = self.values(arm, key)[:, 0] - self.values(other, key)[:, 0]
        return estimate(change, transform=transform, resamples=self.resamples)

    def ratio(self, arm: str, top: str, bottom: str, scale: float = 1.0) -> Interval | None:
        """Sum of a value over the sum of another; None for arms that do not know them."""
        if not self.knows(arm, top, bottom):
            return None
        return self._positive(
            self.values(arm, top, bottom), lambda m: scale * m[..., 0] / np.maximum(m[..., 1], 1e-9)
        )

    def ratio_over(self, arm: str, other: str, top: str, bottom: str) -> Interval:
        """`ratio` of an arm over that of another."""
        both = [self.values(one, top, bottom) for one in (arm, other)]
        return self._positive(
            np.concatenate(both, axis=1),
            lambda m: m[..., 0] * m[..., 3] / np.maximum(m[..., 1] * m[..., 2], 1e-9),
        )

    def over(self, arm: str, other: str, key: str) -> Interval:
        """Mean of an arm over that of another."""
        both = [self.values(one, key) for one in (arm, other)]
        return self._positive(np.concatenate(both, axis=1), lambda m: m[..., 0] / m[..., 1])

    def _positive(self, values: Values, transform: Callable[[Values], Values]) -> Interval:
        return estimate(values, transform=transform, bounds=(0, np.inf), resamples=self.resamples)
