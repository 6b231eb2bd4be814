"""Percentile bootstrap intervals over examples, paired where two arms saw the same examples."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(
    values: Values,
    *,
    transform: Callable[[Values], Values] = lambda means: means,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of a function of means over examples.

    Args:
        values: (N,) one arm, or (N, A) several arms on the same examples, resampled together.
        transform: maps (..., ) or (..., A) means to (...,) estimates.
        level: coverage.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        Estimate on all examples, and the percentile interval.
    """
    values = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(seed)
    counts = random.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    means = counts @ values / len(values)
    estimates = transform(means)
    tail = (1 - level) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return Interval(float(transform(values.mean(axis=0))), float(low), float(high))


def perplexity_interval(nll: Values, **options: object) -> Interval:
    """Perplexity of (N,) window means with its interval."""
    return bootstrap(nll, transform=np.exp, **options)  # type: ignore[arg-type]
