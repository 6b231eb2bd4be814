"""Intervals of estimates: bootstrap over examples, Student's t over a few seeds.

A bootstrap over examples is paired where two arms saw the same examples; windows of one document
are drawn together. It says nothing about another calibration draw. For that, repeat with several
seeds and use `over_seeds`.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval."""

    value: float
    low: float
    high: float


def bootstrap(
    values: Values,
    *,
    clusters: Sequence[Hashable] | None = None,
    transform: Callable[[Values], Values] = lambda means: means,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of a function of means over examples.

    Args:
        values: (N,) one arm, or (N, A) several arms on the same examples, resampled together.
        clusters: (N,) labels; examples of one label, such as windows of one document, are drawn
            together. None: every example is drawn by itself.
        transform: maps (..., ) or (..., A) means to (...,) estimates.
        level: coverage.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        Estimate on all examples, and the percentile interval.
    """
    values = np.asarray(values, dtype=np.float64)
    sums, sizes = _add_up(values, range(len(values)) if clusters is None else clusters)
    draws = _draws(len(sums), resamples, seed)
    drawn = (draws @ sizes).reshape(-1, *[1] * (values.ndim - 1))
    estimates = transform(draws @ sums / drawn)
    tail = (1 - level) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return Interval(float(transform(values.mean(axis=0))), float(low), float(high))


def _add_up(values: Values, clusters: Sequence[Hashable]) -> tuple[Values, Values]:
    """Sum and number of the examples of each cluster, in the order of appearance."""
    places = {label: place for place, label in enumerate(dict.fromkeys(clusters))}
    member = [places[label] for label in clusters]
    sums = np.zeros((len(places), *values.shape[1:]))
    np.add.at(sums, member, values)
    return sums, np.bincount(member).astype(np.float64)


@lru_cache(maxsize=4)  # a report resamples the same few sets of examples again and again
def _draws(examples: int, resamples: int, seed: int) -> Values:
    """(resamples, examples) how often each example is drawn."""
    random = np.random.default_rng(seed)
    even = np.full(examples, 1 / examples)
    return random.multinomial(examples, even, size=resamples).astype(np.float64)


def over_seeds(values: Values, *, level: float = 0.95) -> Interval:
    """Mean of (S,) values of independent seeds with its Student's t interval.

    Raises:
        ValueError: for fewer than two seeds, which have no spread.
    """
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError("an interval over seeds needs at least two seeds")
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    half = float(t.ppf(0.5 + level / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)
