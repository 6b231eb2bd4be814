"""Paired statistics over problems, and over policy seeds where there are several."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from effllm.modules.evaluation.intervals import FEW, Interval, estimate

Values = NDArray[np.float64]


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p of a split like this or a more uneven one, if both were as likely.

    Source: McNemar's test by the binomial law; 1 where no verdict differs.
    """
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


@lru_cache(maxsize=4)  # all rules of a pair are resampled alike
def _shares(count: int, resamples: int, seed: int) -> NDArray[np.float32]:
    """(resamples, count) share of the draws that each of `count` examples has."""
    random = np.random.default_rng((seed, count))
    draws = random.multinomial(count, np.full(count, 1 / count), size=resamples)
    return (draws / count).astype(np.float32)


def paired_gain(ours: Values, theirs: Values, *, resamples: int, seed: int = 0) -> Interval:
    """Mean difference on the same problems, seeds drawn first and problems within.

    With one seed, or with fewer problems than a bootstrap needs, the interval is that over
    problems of the mean over seeds.

    Args:
        ours: (S, N) verdicts of S seeds on N problems.
        theirs: (S, N), compared seed by seed, or (1, N).
        resamples: bootstrap samples.
        seed: of the resampling.
    """
    differences = ours - theirs  # (S, N)
    seeds, problems = differences.shape
    if seeds == 1 or problems < FEW:
        return estimate(differences.mean(axis=0), resamples=resamples)
    drawn_seeds, drawn_problems = (_shares(count, resamples, seed) for count in (seeds, problems))
    by_problem = drawn_seeds @ differences.astype(np.float32)  # (resamples, N)
    drawn = np.einsum("rn,rn->r", by_problem, drawn_problems)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(differences.mean()), float(low), float(high))
