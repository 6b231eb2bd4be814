"""Rules held against each other on the same test problems.

Every rule is a score with a threshold that was chosen on validation problems by one procedure. The
result is a verdict for every problem, from which all statistics are computed.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from effllm.modules.arbitration.branches import COUNTS, Branches
from effllm.modules.arbitration.cost_model import CostModel
from effllm.modules.arbitration.forks import Forks
from effllm.modules.arbitration.observations import CLASSES, CONTEXT, DISTRIBUTIONS, FEATURES, HEADS
from effllm.modules.arbitration.policy import Policy
from effllm.modules.arbitration.rules import ALWAYS, NEVER, Score
from effllm.modules.arbitration.selection import (
    OperatingPoint,
    at_threshold,
    choose_threshold,
    operating_points,
)

_BINS = 10
BLOCKS = {
    "distributions (A)": DISTRIBUTIONS,
    "context (B)": CONTEXT,
    "token classes (C)": CLASSES,
    "heads (D)": HEADS,
}
"""Blocks of features, for leaving them out."""


@dataclass(frozen=True)
class Arm:
    """A rule at its operating point.

    Attributes:
        rule: its name.
        seed: of the policy or the draws; None where there is none.
        point: threshold, and what it brought on validation problems.
        columns: `right` and counts, (N,) each, on test problems.
    """

    rule: str
    seed: int | None
    point: OperatingPoint
    columns: dict[str, Tensor]

    @property
    def key(self) -> str:
        """Unique among arms."""
        return self.rule if self.seed is None else f"{self.rule}-{self.seed}"

    @property
    def described(self) -> dict[str, Any]:
        """All but the columns, for JSON; a threshold without end is a word."""
        point = asdict(self.point)
        words = {NEVER: "never", ALWAYS: "always"}
        point["threshold"] = words.get(point["threshold"], point["threshold"])
        return {"key": self.key, "rule": self.rule, "seed": self.seed, "validation": point}


def outcomes(branches: Branches, leaves: Tensor) -> dict[str, Tensor]:
    """`right` and counts of the leaves that problems end in."""
    columns = {"right": branches.right[leaves].to(torch.uint8)}
    return columns | {name: branches.count(name)[leaves].to(torch.int32) for name in COUNTS}


def judge(
    rule: str,
    score: Score,
    validation: Branches,
    test: Branches,
    *,
    candidates: int,
    seed: int | None = None,
    threshold: float | None = None,
) -> Arm:
    """A rule on test problems, at the threshold that is best on validation problems.

    Args:
        rule: name.
        score: of observations.
        validation: problems that the threshold is chosen on.
        test: problems of the verdicts.
        candidates: thresholds that are tried.
        seed: for the key.
        threshold: instead of a choice.
    """
    scores = score(validation.observations)
    point = (
        choose_threshold(validation, scores, candidates)
        if threshold is None
        else at_threshold(validation, scores, threshold)
    )
    accept = score(test.observations).double() > point.threshold
    return Arm(rule, seed, point, outcomes(test, test.walk(accept)))


def ship(rule: str, candidates: list[Arm], target: Arm) -> Arm:
    """The arm with the best lower bound of the gain on validation; the target if none is above 0.

    Args:
        rule: name of what is shipped.
        candidates: of one seed.
        target: always-target, whose gain is exactly 0.
    """
    best = max([target, *candidates], key=lambda arm: arm.point.bound)
    return Arm(rule, candidates[0].seed, best.point, best.columns)


def bounds(test: Branches) -> dict[str, Tensor]:
    """(N,) right of oracles: the best of one accepted draft token, and of any actions."""
    forks = Forks.of(test)
    nothing = torch.zeros(len(test.problem), dtype=torch.bool)
    one = test.right[test.walk(nothing)].clone()
    one[forks.problem[forks.draft_right]] = True
    return {"oracle_one": one, "oracle": test.best()}


def frontier(branches: Branches, scores: Tensor, costs: CostModel, candidates: int) -> list[Any]:
    """Accuracy and predicted speed-up at every threshold, from never to always."""
    per_leaf, found = costs.per_leaf(branches), []
    for point in operating_points(branches, scores, candidates):
        leaves = branches.walk(scores.double() > point.threshold)
        speed = (branches.count("tokens")[leaves] - 1).sum() / per_leaf[leaves].sum()
        found.append(
            {"accuracy": point.accuracy, "rate": point.rate, "predicted_speed": float(speed)}
        )
    return found


def leaning(policy: Policy, branches: Branches, threshold: float) -> dict[str, float]:
    """Right answers lost, as a share, if a block of features or a single one is hidden.

    A hidden feature is always at its mean. Features tell much the same, so a block can matter
    though none of its features does.
    """
    whole = at_threshold(branches, policy(branches.observations), threshold).accuracy
    lost = {}
    for name, members in (*BLOCKS.items(), *((one, (one,)) for one in FEATURES)):
        seen = branches.observations.clone()
        for member in members:
            place = FEATURES.index(member)
            seen[:, place] = policy.mean[place]
        lost[name] = whole - at_threshold(branches, policy(seen), threshold).accuracy
    return lost


def reliability(policy: Policy, branches: Branches) -> list[dict[str, float]]:
    """Decisive forks by what the policy says of them, and how many the draft's token wins."""
    forks = Forks.of(branches)
    decisive = forks.difference != 0
    said = policy(branches.observations[forks.nodes[decisive]]).sigmoid()
    won = (forks.difference[decisive] > 0).double()
    bins = (said * _BINS).long().clamp(max=_BINS - 1)
    return [
        {
            "said": float(said[bins == one].mean()),
            "won": float(won[bins == one].mean()),
            "forks": int((bins == one).sum()),
        }
        for one in range(_BINS)
        if bool((bins == one).any())
    ]
