"""Tables of decoding benchmarks: speed beside quality, arm by arm, paired by prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from effllm.modules.evaluation.intervals import INTERVALS, Interval, estimate
from effllm.pipelines.reports.arms import Arm
from effllm.pipelines.reports.page import Table

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    """Rows of one benchmark by arm, in the order of the prompts.

    Attributes:
        arms: arm -> its rows.
        about: arm -> what it is.
        resamples: of the bootstrap.
        conditions: of the run that differ from the paper's.
    """

    arms: dict[str, Rows]
    about: dict[str, Arm]
    resamples: int
    conditions: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        rows: Rows,
        described: dict[str, dict[str, Any]],
        resamples: int,
        conditions: tuple[str, ...] = (),
    ) -> Bench:
        """Group rows; every arm must have seen the same prompts."""
        arms: dict[str, Rows] = {name: [] for name in described}
        for row in rows:
            arms[row["set"]].append(row)
        order = {row["id"]: place for place, row in enumerate(arms["plain"])}
        for mine in arms.values():
            mine.sort(key=lambda row: order[row["id"]])
            assert [row["id"] for row in mine] == list(order)
        about = {name: Arm(name, one) for name, one in described.items()}
        return cls(arms, about, resamples, conditions)

    def only(self, group: str) -> Bench:
        """The same arms on one kind of prompt."""
        arms = {
            name: [row for row in mine if row["group"] == group] for name, mine in self.arms.items()
        }
        return replace(self, arms=arms)

    @property
    def groups(self) -> list[str]:
        """Kinds of prompts."""
        return list(dict.fromkeys(row["group"] for row in self.arms["plain"]))

    def values(self, arm: str, *keys: str) -> np.ndarray:
        """(prompts, keys) numbers of one arm; NaN where a row has none."""
        return np.array([[row[key] for key in keys] for row in self.arms[arm]], dtype=np.float64)

    def mean(self, arm: str, key: str) -> Interval:
        """Mean over prompts of what is never negative; `correct` and `distinct` are shares."""
        bounds = (0, 1) if key in ("correct", "distinct") else (0, np.inf)
        return estimate(self.values(arm, key)[:, 0], bounds=bounds, resamples=self.resamples)

    def change(self, arm: str, other: str, key: str) -> Interval:
        """Mean over prompts of the difference to another arm."""
        change = self.values(arm, key)[:, 0] - self.values(other, key)[:, 0]
        return estimate(change, resamples=self.resamples)

    def per(self, arm: str, top: str, bottom: str, scale: float = 1.0) -> Interval | None:
        """Sum of one value over sum of another; None for arms that do not know them."""
        if not all(key in self.arms[arm][0] for key in (top, bottom)):
            return None
        return estimate(
            self.values(arm, top, bottom),
            transform=lambda m: scale * m[..., 0] / np.maximum(m[..., 1], 1e-9),
            bounds=(0, np.inf),
            resamples=self.resamples,
        )

    def per_over(self, arm: str, other: str, top: str, bottom: str) -> Interval:
        """`per` of one arm over that of another, paired by prompt."""
        both = [self.values(one, top, bottom) for one in (arm, other)]
        return estimate(
            np.concatenate(both, axis=1),
            transform=lambda m: m[..., 0] * m[..., 3] / np.maximum(m[..., 1] * m[..., 2], 1e-9),
            bounds=(0, np.inf),
            resamples=self.resamples,
        )

    def speed(self, arm: str) -> Interval:
        """Tokens per second over all prompts, prompt pass included."""
        speed = self.per(arm, "tokens", "seconds")
        assert speed is not None
        return speed

    def speed_ratio(self, arm: str, other: str) -> Interval:
        """Tokens per second of one arm over another's, paired by prompt."""
        return self.per_over(arm, other, "tokens", "seconds")

    def acceptance_length(self, arm: str) -> Interval | None:
        """Tokens per pass of the target after the prompt; None for transformers' own arms."""
        return self.per(arm, "emitted", "rounds")

    def checkable(self) -> Bench:
        """The same arms on prompts with an answer."""
        arms = {
            name: [row for row in mine if row["correct"] is not None]
            for name, mine in self.arms.items()
        }
        return replace(self, arms=arms)


def loosened_places(row: dict[str, Any]) -> list[int]:
    """Places in the output of tokens that the target would not have chosen."""
    places = [
        event["prefix"] - row["prompt_tokens"] + event["position"]
        for event in row.get("events", [])
        if event["loosened"]
    ]
    return [place for place in places if place < row["tokens"]]


def speed_table(bench: Bench) -> Table:
    """The main table: speed and quality of every arm."""
    right = bench.checkable()
    answers = len(right.arms["plain"])

    def cells(arm: str) -> list[str]:
        other = arm != "plain"
        return [
            interval(bench.acceptance_length(arm), 2),
            ""
            if bench.about[arm].lossless
            else interval(bench.per(arm, "loosened", "tokens", 100), 1),
            interval(bench.change(arm, "plain", "nll"), 3, sign=True) if other else "",
            interval(right.mean(arm, "correct"), 0, scale=100) if answers else "",
            interval(bench.speed(arm), 1),
            interval(bench.speed_ratio(arm, "plain"), 2) if other else "",
        ]

    return _table(
        bench,
        [
            "tokens per pass (tau)",
            "loosened per 100 tokens",
            "target NLL over plain",
            "right answers, %",
            "tokens/s",
            "speed over plain",
        ],
        cells,
        f"{INTERVALS}, over prompts; comparisons are paired by prompt. Speeds count "
        "output tokens, cut at the end of the text and at the budget, over the whole time, prompt "
        "included; all arms in turn on the same prompts. Target NLL: nats per token of the arm's "
        f"own output under the target. Right answers: of {answers} prompts that have one.",
    )


def cost_table(bench: Bench) -> Table:
    """Passes, and where the time goes."""

    def cells(arm: str) -> list[str]:
        return [
            interval(bench.per(arm, "rounds", "emitted"), 2),
            interval(bench.per(arm, "draft_passes", "emitted"), 2),
            interval(bench.per(arm, "accepted", "drafted", 100), 0)
            if bench.about[arm].speculates
            else "",
            *(
                interval(bench.per(arm, f"{part}_seconds", "rounds", 1000), 2)
                for part in ("draft", "verify", "host")
            ),
            interval(bench.per(arm, "emitted", "decode_seconds"), 1),
            interval(bench.mean(arm, "prefill_seconds"), 3)
            if "prefill_seconds" in bench.arms[arm][0]
            else "",
            interval(bench.mean(arm, "seconds"), 2),
        ]

    ours = [row for mine in bench.arms.values() for row in mine if "rounds" in row]
    parts = sum(row[f"{part}_seconds"] for row in ours for part in ("draft", "verify", "host"))
    whole = sum(row["decode_seconds"] for row in ours)
    return _table(
        bench,
        [
            "target passes per token",
            "drafter passes per token",
            "drafts kept, %",
            "draft, ms per round",
            "target, ms per round",
            "host, ms per round",
            "tokens/s after the prompt",
            "prompt pass, s",
            "whole, s per prompt",
        ],
        cells,
        "Passes and tokens after the prompt. Host: the verifier, rollback and bookkeeping. The "
        f"three parts of a round add up to {100 * parts / whole:.1f} % of the time after the "
        "prompt.",
    )


def text_table(bench: Bench) -> Table:
    """What the text is like."""

    def cells(arm: str) -> list[str]:
        mine = bench.arms[arm]
        agree = sum(
            row["first_difference"] is None
            or row["first_difference"] >= min(loosened_places(row), default=row["tokens"])
            for row in mine
        )
        return [
            interval(bench.mean(arm, "nll"), 3),
            interval(bench.mean(arm, "distinct"), 2),
            interval(bench.mean(arm, "longest_repeat"), 1),
            interval(bench.mean(arm, "tokens"), 0),
            f"{sum(row['first_difference'] is None for row in mine)}/{len(mine)}",
            f"{agree}/{len(mine)}",
        ]

    return _table(
        bench,
        [
            "target NLL",
            "distinct 2-grams",
            "longest repeat, tokens",
            "tokens per output",
            "same text as plain",
            "same up to the first loosened token",
        ],
        cells,
        "A text that differs from plain decoding before anything was loosened differs by rounding: "
        "near ties may fall differently in passes over a tree, and over several tokens where they "
        "are not compiled.",
    )


def group_table(bench: Bench) -> Table:
    """Speed over plain per kind of prompt."""
    groups = {group: bench.only(group) for group in bench.groups}
    rows = [
        [bench.about[arm].title]
        + [interval(one.speed_ratio(arm, "plain"), 2) for one in groups.values()]
        for arm in bench.arms
        if arm != "plain"
    ]
    return Table(["Speed over plain", *groups], rows)


def interval(value: Interval | None, digits: int, *, sign: bool = False, scale: float = 1.0) -> str:
    """`1.92 [1.80, 2.05]`; empty for None."""
    if value is None:
        return ""
    form = f"{'+' if sign else ''}.{digits}f"
    return value.text(lambda one: f"{scale * one:{form}}")


def _table(bench: Bench, columns: list[str], cells: Callable[[str], list[str]], note: str) -> Table:
    """A row per arm; FLy's stand out, and columns without a single entry are left out."""
    rows = [[bench.about[arm].title, *cells(arm)] for arm in bench.arms]
    kept = [0, *(i for i in range(1, len(rows[0])) if any(row[i] for row in rows))]
    return Table(
        [["Arm", *columns][i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        note=note,
        strong=frozenset(i for i, arm in enumerate(bench.arms) if bench.about[arm].is_fly),
    )
