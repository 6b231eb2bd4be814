"""Tables of decoding benchmarks: speed beside quality, arm by arm, paired by prompt."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from effllm.modules.evaluation.intervals import Interval, bootstrap
from effllm.pipelines.reports.page import Table

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    """Rows of one benchmark by arm, in the order of the prompts.

    Attributes:
        arms: arm -> its rows.
        lossless: arm -> whether its output must be the target's own.
        resamples: of the bootstrap.
    """

    arms: dict[str, Rows]
    lossless: dict[str, bool]
    resamples: int

    @classmethod
    def of(cls, rows: Rows, lossless: dict[str, bool], resamples: int) -> Bench:
        """Group rows; every arm must have seen the same prompts."""
        arms: dict[str, Rows] = defaultdict(list)
        for row in rows:
            arms[row["set"]].append(row)
        order = [row["id"] for row in arms["plain"]]
        sorted_arms = {
            name: sorted(mine, key=lambda row: order.index(row["id"]))
            for name, mine in arms.items()
        }
        assert all([row["id"] for row in mine] == order for mine in sorted_arms.values())
        return cls(sorted_arms, lossless, resamples)

    def only(self, group: str) -> Bench:
        """The same arms on one kind of prompt."""
        arms = {
            name: [row for row in mine if row["group"] == group] for name, mine in self.arms.items()
        }
        return Bench(arms, self.lossless, self.resamples)

    @property
    def groups(self) -> list[str]:
        """Kinds of prompts."""
        return list(dict.fromkeys(row["group"] for row in self.arms["plain"]))

    def values(self, arm: str, *keys: str) -> np.ndarray:
        """(prompts, keys) numbers of one arm."""
        return np.array([[row[key] for key in keys] for row in self.arms[arm]], dtype=np.float64)

    def speed(self, arm: str) -> Interval:
        """Tokens per second over all prompts, prompt pass included."""
        return bootstrap(
            self.values(arm, "tokens", "seconds"),
            transform=lambda m: m[..., 0] / m[..., 1],
            resamples=self.resamples,
        )

    def speed_ratio(self, arm: str, other: str) -> Interval:
        """Tokens per second of one arm over another's, paired by prompt."""
        both = [self.values(one, "tokens", "seconds") for one in (arm, other)]
        return bootstrap(
            np.concatenate(both, axis=1),
            transform=lambda m: (m[..., 0] / m[..., 1]) / (m[..., 2] / m[..., 3]),
            resamples=self.resamples,
        )

    def acceptance_length(self, arm: str) -> Interval | None:
        """Tokens per pass of the target after the prompt; None for transformers' own arms."""
        if "rounds" not in self.arms[arm][0]:
            return None
        return bootstrap(
            self.values(arm, "emitted", "rounds"),
            transform=lambda m: m[..., 0] / np.maximum(m[..., 1], 1e-9),
            resamples=self.resamples,
        )

    def nll_change(self, arm: str) -> Interval:
        """Mean over prompts of the output's likelihood under the target, against plain; nats."""
        change = self.values(arm, "nll")[:, 0] - self.values("plain", "nll")[:, 0]
        return bootstrap(change, resamples=self.resamples)

    def correct(self, arm: str) -> Interval | None:
        """Percent of checkable prompts answered right."""
        known = [row["correct"] for row in self.arms[arm] if row["correct"] is not None]
        if not known:
            return None
        return bootstrap(100 * np.array(known, dtype=np.float64), resamples=self.resamples)


def speed_table(bench: Bench) -> Table:
    """One row per arm: passes, speed, quality."""
    rows: list[list[str]] = []
    strong = set()
    for arm, mine in bench.arms.items():
        tau = bench.acceptance_length(arm)
        drafted = sum(row.get("drafted", 0) for row in mine)
        tokens = sum(row["tokens"] for row in mine)
        same = sum(row["first_difference"] is None for row in mine)
        right = bench.correct(arm)
        ratio = "" if arm == "plain" else interval(bench.speed_ratio(arm, "plain"), 2)
        if arm.endswith("fly"):
            strong.add(len(rows))
        rows.append(
            [
                arm.replace("_", " "),
                "" if tau is None else interval(tau, 2),
                f"{100 * sum(row['accepted'] for row in mine) / drafted:.0f}" if drafted else "",
                f"{100 * sum(row['loosened'] for row in mine) / tokens:.1f}" if drafted else "",
                interval(bench.speed(arm), 1),
                ratio,
                "" if arm == "plain" else interval(bench.nll_change(arm), 3, sign=True),
                f"{np.mean([row['distinct'] for row in mine]):.2f}",
                "" if right is None else interval(right, 0),
                f"{same}/{len(mine)}",
            ]
        )
    return Table(
        [
            "Arm",
            "tokens per pass",
            "drafts kept, %",
            "loosened per 100 tokens",
            "tokens/s",
            "speed over plain",
            "target NLL over plain",
            "distinct 2-grams",
            "right answers, %",
            "same text as plain",
        ],
        rows,
        note="Speeds count output tokens over the whole time, prompt included; all arms on the "
        "same prompts in turn; 95 % bootstrap intervals over prompts. Target NLL: nats per token "
        "of the arm's own output under the target.",
        strong=frozenset(strong),
    )


def group_table(bench: Bench) -> Table:
    """Speed over plain per kind of prompt."""
    groups = bench.groups
    rows = []
    for arm in bench.arms:
        if arm == "plain":
            continue
        cells = [interval(bench.only(group).speed_ratio(arm, "plain"), 2) for group in groups]
        rows.append([arm.replace("_", " "), *cells])
    return Table(["Speed over plain", *groups], rows)


def interval(value: Interval, digits: int, *, sign: bool = False) -> str:
    """`1.92 [1.80, 2.05]`."""
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"
