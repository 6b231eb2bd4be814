"""How much there is to win by arbitration, and whether it can be told apart from luck.

Union: what choosing between the two models per problem could bring. Fixed: problems that the target
gets wrong and that one draft token at one mismatch puts right; the null puts the target's own next
best token there instead, so the excess is what the draft brings beyond a second try. Realizable:
what a warm-started policy really gains in whole outputs. Reinforcement begins only where that gain,
or excess and separability together, are clear of nothing.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from effllm.modules.arbitration.branches import Branches
from effllm.modules.arbitration.forks import Forks, area_under_curve
from effllm.modules.arbitration.observations import FEATURES
from effllm.modules.arbitration.policy import Policy
from effllm.modules.arbitration.selection import choose_threshold
from effllm.modules.evaluation.intervals import Interval, estimate

_SEPARABLE = 0.6  # area under the curve whose lower bound opens the gate
_CURVES = 200  # resamples of an area


def measure(
    branches: Branches,
    beside: dict[str, Tensor],
    policies: list[Policy],
    *,
    candidates: int,
    resamples: int,
) -> dict[str, Any]:
    """All measures of one split.

    Args:
        branches: of the problems.
        beside: `draft_right` (N,) and `null_right` (f,).
        policies: warm-started, of several seeds; their mean gain counts.
        candidates: thresholds that are tried.
        resamples: of the bootstrap, over problems.

    Returns:
        Name -> measure, intervals as mappings, for JSON.
    """

    def interval(values: Tensor) -> Interval:
        return estimate(values.double().numpy(), resamples=resamples)

    nothing = torch.zeros(len(branches.problem), dtype=torch.bool)
    target = branches.right[branches.walk(nothing)].float()
    draft = beside["draft_right"].float()
    forks = Forks.of(branches)
    fixed, luck = (
        _any_per_problem(forks, right, len(branches)) * (1 - target)
        for right in (forks.draft_right, beside["null_right"])
    )
    best = branches.best().float()
    gains = []
    for policy in policies:
        scores = policy(branches.observations)
        point = choose_threshold(branches, scores, candidates)
        leaves = branches.walk(scores.double() > point.threshold)
        gains.append(branches.right[leaves].float() - target)
    decisive = forks.difference != 0
    won = forks.difference[decisive] > 0
    owners = forks.problem[decisive]
    seen = branches.observations[forks.nodes[decisive]]
    scored = {name: seen[:, number] for number, name in enumerate(FEATURES)}
    areas = {
        name: area_under_curve(values, won)
        for name, values in scored.items()
        if bool((values != values[:1]).any())
    }
    policy_area = _area_interval(policies[0](seen) if len(seen) else torch.zeros(0), won, owners)
    realizable, excess = interval(torch.stack(gains).mean(dim=0)), interval(fixed - luck)
    clear = realizable.known and realizable.low > 0
    told = excess.known and excess.low > 0 and policy_area.known and policy_area.low > _SEPARABLE
    return {
        "problems": len(branches),
        "target": interval(target).plain,
        "draft": interval(draft).plain,
        "oracle": interval(best).plain,
        "union": interval(torch.maximum(target, draft) - target).plain,
        "fixed": interval(fixed).plain,
        "fixed_null": interval(luck).plain,
        "excess": excess.plain,
        "realizable": realizable.plain,
        "cells": forks.cells(),
        "separability": policy_area.plain if policy_area.known else None,
        "areas": {name: value for name, value in areas.items() if not np.isnan(value)},
        "gate": {"open": bool(clear or told), "clear_gain": bool(clear), "separable": bool(told)},
    }


def _any_per_problem(forks: Forks, right: Tensor, count: int) -> Tensor:
    """(N,) 1 where some fork of the problem is right."""
    found = torch.zeros(count)
    found[forks.problem[right]] = 1
    return found


def _area_interval(scores: Tensor, positive: Tensor, owners: Tensor) -> Interval:
    """Area under the curve with its bootstrap interval, problems drawn whole."""
    value = area_under_curve(scores, positive)
    if np.isnan(value):
        return Interval(value)
    random = np.random.default_rng(0)
    members = [(owners == one).nonzero()[:, 0] for one in owners.unique()]
    drawn = []
    for _ in range(_CURVES):
        rows = torch.cat([members[one] for one in random.integers(len(members), size=len(members))])
        area = area_under_curve(scores[rows], positive[rows])
        if not np.isnan(area):
            drawn.append(area)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))
