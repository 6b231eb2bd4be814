"""Decoding benchmarks: speed beside quality, arm by arm, paired by prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from effllm.modules.errors import DataError
from effllm.modules.evaluation.intervals import INTERVALS, Interval
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.decoders.naming import Arm
from effllm.pipelines.reports.page import Table
from effllm.pipelines.reports.paired import Paired, Rows
from effllm.pipelines.reports.table import Column, columns, make_table


@dataclass(frozen=True)
class Bench(Paired):
    """Rows of one benchmark by arm, in the order of the prompts.

    Attributes:
        about: arm -> what it is.
        conditions: of the run that differ from the paper's.
    """

    about: dict[str, Arm]
    conditions: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        rows: Rows,
        described: dict[str, dict[str, Any]],
        resamples: int,
        conditions: tuple[str, ...] = (),
    ) -> Bench:
        """Group rows by arm.

        Raises:
            DataError: if plain decoding is missing or an arm saw other prompts than it.
        """
        arms: dict[str, Rows] = {name: [] for name in described}
        for row in rows:
            arms[row["set"]].append(row)
        order = {row["id"]: place for place, row in enumerate(arms.get("plain", []))}
        for name, mine in arms.items():
            if {row["id"] for row in mine} != order.keys():
                raise DataError(
                    f"report: arm {name} has rows of other prompts than plain decoding "
                    f"({len(mine)} against {len(order)}); measure all arms again in one stage"
                )
            mine.sort(key=lambda row: order[row["id"]])
        about = {name: Arm(name, one) for name, one in described.items()}
        return cls(arms, resamples, about, conditions)

    @classmethod
    def read(cls, benched: Artifact, resamples: int, conditions: tuple[str, ...] = ()) -> Bench:
        """The rows of a stored benchmark."""
        rows, arms = benched.read_rows("predictions.jsonl"), benched.read_json("arms.json")
        return cls.of(rows, arms, resamples, conditions)

    def where(self, wanted: Callable[[dict[str, Any]], bool]) -> Bench:
        """The same arms on some of the prompts."""
        return replace(
            self, arms={name: list(filter(wanted, mine)) for name, mine in self.arms.items()}
        )

    def only(self, group: str) -> Bench:
        """The same arms on one kind of prompt."""
        return self.where(lambda row: row["group"] == group)

    def checkable(self) -> Bench:
        """The same arms on prompts with an answer."""
        return self.where(lambda row: row["correct"] is not None)

    @property
    def groups(self) -> list[str]:
        """Kinds of prompts."""
        return list(dict.fromkeys(row["group"] for row in self.arms["plain"]))

    def speed(self, arm: str) -> Interval | None:
        """Tokens per second over all prompts, prompt pass included."""
        return self.ratio(arm, "tokens", "seconds")

    def speed_ratio(self, arm: str, other: str) -> Interval:
        """Tokens per second of one arm over another's, paired by prompt."""
        return self.ratio_over(arm, other, "tokens", "seconds")

    def acceptance_length(self, arm: str) -> Interval | None:
        """Tokens per pass of the target after the prompt; None for transformers' own arms."""
        return self.ratio(arm, "emitted", "rounds")

    def loosened(self, arm: str) -> Interval | None:
        """Loosened of 100 tokens; None for arms that loosen nothing."""
        return None if self.about[arm].lossless else self.ratio(arm, "loosened", "tokens", 100)

    def table(self, *columns: Column, note: str = "") -> Table:
        """A row per arm; where the best is bold, plain decoding is the reference."""
        named = Column("Arm", lambda arm: self.about[arm].title)
        return make_table(self.arms, named, *columns, note=note, ranked=lambda arm: arm != "plain")

    def per(self, title: str, top: str, bottom: str, form: str, scale: float = 1.0) -> Column:
        """A column of a value over another, of the arms that know both."""
        return Column(title, lambda arm: self.ratio(arm, top, bottom, scale), form)

    def against_plain(self, figure: Callable[[str, str], Interval]) -> Callable[[str], Any]:
        """A cell that compares an arm with plain decoding; empty for itself."""
        return lambda arm: None if arm == "plain" else figure(arm, "plain")


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
    return bench.table(
        Column("speed over plain", bench.against_plain(bench.speed_ratio), ".2f", best=max),
        Column("tokens/s", bench.speed, ".1f"),
        Column("tokens per pass (tau)", bench.acceptance_length, ".2f", best=max),
        Column("loosened per 100 tokens", bench.loosened, ".1f"),
        Column(
            "target NLL over plain",
            bench.against_plain(lambda arm, plain: bench.change(arm, plain, "nll")),
            "+.3f",
        ),
        Column(
            "right answers, %", lambda arm: right.mean(arm, "correct") if answers else None, ".0%"
        ),
        note=f"{INTERVALS}, over prompts; comparisons are paired by prompt. Speeds count "
        "output tokens, cut at the end of the text and at the budget, over the whole time, prompt "
        "included; all arms in turn on the same prompts. Target NLL: nats per token of the arm's "
        f"own output under the target. Right answers: of {answers} prompts that have one.",
    )


def cost_table(bench: Bench) -> Table:
    """Passes, and where the time goes."""
    parts = ("draft", "verify", "host")
    ours = [row for mine in bench.arms.values() for row in mine if "rounds" in row]
    spent = sum(row[f"{part}_seconds"] for row in ours for part in parts)
    whole = sum(row["decode_seconds"] for row in ours)
    return bench.table(
        bench.per("target passes per token", "rounds", "emitted", ".2f"),
        bench.per("drafter passes per token", "draft_passes", "emitted", ".2f"),
        Column(
            "drafts kept, %",
            lambda arm: (
                bench.ratio(arm, "accepted", "drafted") if bench.about[arm].speculates else None
            ),
            ".0%",
        ),
        bench.per("draft, ms per round", "draft_seconds", "rounds", ".2f", 1000),
        bench.per("target, ms per round", "verify_seconds", "rounds", ".2f", 1000),
        bench.per("host, ms per round", "host_seconds", "rounds", ".2f", 1000),
        bench.per("tokens/s after the prompt", "emitted", "decode_seconds", ".1f"),
        Column(
            "prompt pass, s",
            lambda arm: (
                bench.mean(arm, "prefill_seconds") if bench.knows(arm, "prefill_seconds") else None
            ),
            ".3f",
        ),
        Column("whole, s per prompt", lambda arm: bench.mean(arm, "seconds"), ".2f"),
        note="Passes and tokens after the prompt. Host: the verifier, rollback and bookkeeping. "
        f"The three parts of a round add up to {100 * spent / whole:.1f} % of the time after the "
        "prompt.",
    )


def text_table(bench: Bench) -> Table:
    """What the text is like."""

    def alike(arm: str) -> str:
        same = sum(row["first_difference"] is None for row in bench.arms[arm])
        return f"{same}/{len(bench.arms[arm])}"

    def alike_at_first(arm: str) -> str:
        same = sum(
            row["first_difference"] is None
            or row["first_difference"] >= min(loosened_places(row), default=row["tokens"])
            for row in bench.arms[arm]
        )
        return f"{same}/{len(bench.arms[arm])}"

    return bench.table(
        Column("target NLL", lambda arm: bench.mean(arm, "nll"), ".3f"),
        Column("distinct 2-grams", lambda arm: bench.mean(arm, "distinct"), ".2f"),
        Column("longest repeat, tokens", lambda arm: bench.mean(arm, "longest_repeat"), ".1f"),
        Column("tokens per output", lambda arm: bench.mean(arm, "tokens"), ".0f"),
        Column("same text as plain", alike),
        Column("same up to the first loosened token", alike_at_first),
        note="A text that differs from plain decoding before anything was loosened differs by "
        "rounding: near ties may fall differently in passes over a tree, and over several tokens "
        "where they are not compiled.",
    )


def group_table(bench: Bench) -> Table:
    """Speed over plain per kind of prompt."""
    groups = {group: bench.only(group) for group in bench.groups}
    return make_table(
        [arm for arm in bench.arms if arm != "plain"],
        Column("Speed over plain", lambda arm: bench.about[arm].title),
        *columns(
            {group: group for group in groups},
            lambda arm, group: groups[group].speed_ratio(arm, "plain"),
            ".2f",
            max,
        ),
    )
