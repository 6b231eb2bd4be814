"""The operating point of a rule: chosen on validation, and only if it does no harm there.

Candidates are thresholds between never and always. The one with the highest lower bound of the
paired gain over the target is taken; never taking the draft's token gains exactly 0 and is among
them, so a rule that cannot be told from the target is not shipped.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from effllm.modules.arbitration.branches import Branches
from effllm.modules.arbitration.rules import ALWAYS, NEVER

_QUANTILE = 1.96  # of the normal law, for the lower bound


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it brought on validation problems.

    Attributes:
        threshold: the draft's token is taken where the score is above.
        gain: mean paired gain in right answers over the target.
        bound: its lower 95 % bound.
        accuracy: share of right answers.
        rate: share of met mismatches at which the draft's token was taken.
    """

    threshold: float
    gain: float
    bound: float
    accuracy: float
    rate: float


def choose_threshold(branches: Branches, scores: Tensor, candidates: int) -> OperatingPoint:
    """The best threshold on validation problems.

    Args:
        branches: of the validation problems.
        scores: (n,) of all their nodes.
        candidates: thresholds tried between never and always, at quantiles of the scores.
    """
    points = operating_points(branches, scores, candidates)
    return max(points, key=lambda point: (point.bound, point.threshold))


def operating_points(branches: Branches, scores: Tensor, candidates: int) -> list[OperatingPoint]:
    """All candidates, from never to always."""
    places = torch.linspace(0, 1, candidates, dtype=torch.float64)
    inner = scores.double().quantile(places).flip(0).tolist() if len(scores) else []
    return [at_threshold(branches, scores, one) for one in (NEVER, *dict.fromkeys(inner), ALWAYS)]


def at_threshold(branches: Branches, scores: Tensor, threshold: float) -> OperatingPoint:
    """What a threshold brings."""
    accept = scores.double() > threshold
    leaves = branches.walk(accept)
    target = branches.walk(torch.zeros_like(accept))
    gain = branches.right[leaves].double() - branches.right[target].double()
    decided = branches.count("decisions")[leaves].sum()
    return OperatingPoint(
        threshold=threshold,
        gain=float(gain.mean()),
        bound=lower_bound(gain),
        accuracy=float(branches.right[leaves].double().mean()),
        rate=float(branches.count("accepted")[leaves].sum() / decided.clamp(min=1)),
    )


def lower_bound(gain: Tensor) -> float:
    """Lower 95 % bound of the mean of (N,) paired gains; of one problem never above 0."""
    if len(gain) < 2:
        return min(0.0, float(gain.mean()))
    return float(gain.mean() - _QUANTILE * gain.std() / np.sqrt(len(gain)))
