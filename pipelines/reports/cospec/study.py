"""The results of one pair, gathered for tables, claims and figures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effllm.modules.arbitration.statistics import mcnemar, paired_gain
from effllm.modules.evaluation.intervals import Interval, estimate
from effllm.pipelines.artifacts.arbitration import (
    Arbiters,
    ArbitrationPair,
    ArbitrationSpeeds,
    ArbitrationVerdicts,
    BranchTries,
    Headroom,
)
from effllm.pipelines.reports.paired import Paired
from effllm.pipelines.reports.results import Results

Values = NDArray[np.float64]

TITLES = {
    "target": "Target, by exact speculation",
    "cospec": "CoSpec, as shipped",
    "rl": "reinforcement (mlp)",
    "warm": "warm start alone (mlp)",
    "rl_speed": "reinforcement, speed in the reward",
    "rl_fork": "reinforcement, credit by forks",
    "rl_group_deviation": "reinforcement, credit as in GRPO",
    "random": "random, at CoSpec's rate",
    "self_rl": "self-arbitration, reinforcement",
    "self_warm": "self-arbitration, warm start",
    "always_draft": "always the draft's token",
    "draft": "draft alone",
    "entropy": "entropy gate (top 3 of the target)",
    "margin": "margin of the target",
    "chow": "Chow: draft's confidence",
    "difference": "Diff: max q - max p",
    "optimal": "OPT: Diff over TV",
    "kl": "KL(target, draft)",
    "ensemble": "ensemble of both laws",
    "warm_linear": "warm start, linear",
    "autojudge": "AutoJudge-style labels",
    "shuffled": "labels shuffled",
    "warm_target": "warm start, target's features",
    "warm_draft": "warm start, draft's features",
    "oracle_one": "oracle, one draft token",
    "oracle": "oracle, any choices",
}
"""Rows of the main table, in order."""
ONE_NUMBER = ("entropy", "margin", "chow", "difference", "optimal", "kl", "ensemble")


@dataclass(frozen=True)
class Study:
    """One pair.

    Attributes:
        name: of the pair.
        right: rule -> (S, N) verdicts.
        counts: rule -> column -> (S, N); not of oracles and the draft alone.
        rules: rule -> descriptions of its arms, by seed.
        headroom: measures on validation problems.
        figures: frontiers, leaning, reliability, texts.
        pair: information about it.
        curves: rule -> rows of (seed, step, name, value).
        verdicts: the artifact.
        resamples: of the bootstrap.
        timed: seconds and tokens of decoded test problems, by arm; None if nothing was timed.
        gains: those that were computed, by both rules; tables and claims ask for the same.
    """

    name: str
    right: dict[str, Values]
    counts: dict[str, dict[str, Values]]
    rules: dict[str, list[dict[str, Any]]]
    headroom: dict[str, Any]
    figures: dict[str, Any]
    pair: dict[str, Any]
    curves: list[dict[str, Any]]
    verdicts: ArbitrationVerdicts
    resamples: int
    timed: Paired | None = None
    gains: dict[tuple[str, str], Interval] = field(default_factory=dict)

    def share(self, rule: str) -> Interval:
        """Right answers of a rule, as a share, seeds averaged."""
        values = self.right[rule].mean(axis=0)
        return estimate(values, bounds=(0, 1), resamples=self.resamples)

    def gain(self, rule: str, over: str = "target") -> Interval:
        """Paired difference in right answers."""
        if (rule, over) not in self.gains:
            self.gains[rule, over] = paired_gain(
                self.right[rule], self.right[over], resamples=self.resamples
            )
        return self.gains[rule, over]

    def changed(self, rule: str) -> tuple[float, float, float]:
        """Problems won and lost against the target, mean over seeds; median McNemar p."""
        ours, target = self.right[rule], self.right["target"]
        won, lost = ((ours > target).sum(axis=1), (ours < target).sum(axis=1))
        p = [mcnemar(int(w), int(x)) for w, x in zip(won, lost, strict=True)]
        return float(won.mean()), float(lost.mean()), float(np.median(p))

    def predicted_speed(self, rule: str) -> float:
        """Tokens after the first over cost in target steps, over all problems and seeds."""
        costs, counts = self.pair["costs"], self.counts[rule]
        passes = 1 + (costs["verified"] + costs["draft"]) * costs["block"]
        spent = counts["blocks"].sum() * passes + costs["policy"] * counts["calls"].sum()
        return float((counts["tokens"] - 1).sum() / spent)

    def best_one_number(self) -> str:
        """The one-number rule that validation recommends."""
        return max(ONE_NUMBER, key=lambda rule: self.rules[rule][0]["validation"]["bound"])


def gather(results: Results, resamples: int) -> list[Study]:
    """A study for every table of verdicts, in the order of the results."""
    found = []
    for verdicts in results.of(ArbitrationVerdicts):
        pair = results.input(verdicts, "pair", ArbitrationPair)
        tries = results.input(verdicts, "branches", BranchTries)
        headroom = next(
            measured
            for measured in results.of(Headroom)
            if measured.manifest["inputs"]["branches"] == tries.label
        )
        columns = verdicts.columns()
        rules: dict[str, list[dict[str, Any]]] = {}
        for arm in verdicts.rules:
            rules.setdefault(arm["rule"], []).append(arm)
        right, counts = {}, {}
        for rule, arms in rules.items():
            stacked = {
                name: np.stack([columns[arm["key"]][name].double().numpy() for arm in arms])
                for name in columns[arms[0]["key"]]
            }
            right[rule], counts[rule] = stacked.pop("right"), stacked
        for name in ("draft", "oracle_one", "oracle"):
            right[name] = columns[name]["right"].double().numpy()[None]
        found.append(
            Study(
                name=pair.info["name"],
                right=right,
                counts=counts,
                rules=rules,
                headroom=headroom.figures,
                figures=verdicts.figures,
                pair=pair.info,
                curves=_curves(results, verdicts.manifest["inputs"]["arbiters"]),
                verdicts=verdicts,
                resamples=resamples,
                timed=_timed(results, verdicts, resamples),
            )
        )
    return found


def _timed(results: Results, verdicts: ArbitrationVerdicts, resamples: int) -> Paired | None:
    """Rows of every arm that was timed with these verdicts."""
    for speeds in results.of(ArbitrationSpeeds):
        if speeds.manifest["inputs"]["verdicts"] == verdicts.label:
            arms: dict[str, list[dict[str, Any]]] = {}
            for row in speeds.rows():
                arms.setdefault(row["set"], []).append(row)
            ids = [row["id"] for row in arms["plain"]]
            for rows in arms.values():
                rows.sort(key=lambda row: ids.index(row["id"]))
            return Paired(arms, resamples)
    return None


def _curves(results: Results, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Training curves of reinforcement on verdicts, over draft and target."""
    found = []
    for arbiters in results.of(Arbiters):
        if arbiters.label not in labels:
            continue
        info = arbiters.info
        wanted = info["trainer"] == "reinforcement" and info["proposer"] == "draft"
        if not wanted or info["speed_weight"] or not info["gate_open"]:
            continue
        for seed in info["seeds"]:
            with arbiters.curve(seed).open(newline="") as file:
                found += [{"seed": seed, **row} for row in csv.DictReader(file)]
    return found
