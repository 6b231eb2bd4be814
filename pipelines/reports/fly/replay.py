"""The offline replay under lossy rules: one knob at a time, and tau against what is given up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effllm.modules.evaluation.intervals import INTERVALS, Interval
from effllm.pipelines.artifacts.decoding import Replay
from effllm.pipelines.reports.decoders.naming import Arm
from effllm.pipelines.reports.figures import lines
from effllm.pipelines.reports.page import Block, Figure, Table
from effllm.pipelines.reports.table import Column, make_table

Row = dict[str, Any]
Setting = dict[str, Any]

WHAT_IT_IS = (
    "No model ran for this. At every position of the target's own text a long draft was recorded "
    "with the target's verdict on each of its tokens, also after the first mismatch; each rule "
    "then walks the text in rounds over the first K tokens of these blocks. For exact verification "
    "that is what decoding does. For the other rules it is exact within a block and an "
    "approximation across blocks: after a loosened token the walk goes on along the target's own "
    "text, where decoding would go on in another. What a rule does to the text is not measured "
    "here; the regret of what it keeps is."
)


@dataclass(frozen=True)
class ReplayRows:
    """Rows of one replay.

    Attributes:
        rows: per arm and rule.
        arms: arm -> what drafted.
        centre: FLy's settings around which one knob at a time is turned.
    """

    rows: list[Row]
    arms: dict[str, Arm]
    centre: Setting

    @classmethod
    def of(cls, artifact: Replay, fly: Arm) -> ReplayRows:
        """Centred at the settings of an arm of the benchmark."""
        keys = ("window", "threshold", "measure", "window_check")
        centre = {"tokens": fly.tokens, **{key: fly.verifier[key] for key in keys}}
        arms = {name: Arm(name, one) for name, one in artifact.read_json("arms.json").items()}
        return cls(artifact.read_rows("replay.jsonl"), arms, centre)

    def find(self, arm: str, rule: str, **settings: Any) -> list[Row]:
        """Rows of a rule that agree with the settings."""
        return [
            row
            for row in self.rows
            if (row["arm"], row["rule"]) == (arm, rule)
            and all(row[key] == value for key, value in settings.items())
        ]

    def fly(self, arm: str, *free: str) -> list[Row]:
        """FLy's rows at the centre but for the free knobs."""
        fixed = {key: value for key, value in self.centre.items() if key not in free}
        return self.find(arm, "fly", **fixed)


def blocks(data: ReplayRows, folder: Path) -> list[Block]:
    """The picture, and a table for each drafter."""
    return [draw_tradeoff(data, folder), *(knob_table(data, arm) for arm in data.arms)]


def knob_table(data: ReplayRows, arm: str) -> Table:
    """One knob at a time around the centre, and the other rules at the same K."""
    tokens, centre = data.centre["tokens"], data.centre

    def others(*knobs: str) -> list[Row]:
        return [row for row in data.fly(arm, *knobs) if row[knobs[-1]] != centre[knobs[-1]]]

    named = [("exact", row) for row in data.find(arm, "exact", tokens=tokens)]
    named += [("FLy as above", row) for row in data.fly(arm)]
    named += [(f"W={row['window']}", row) for row in others("window")]
    named += [
        (f"gate {row['threshold']:g} nats" if row["threshold"] else "no gate", row)
        for row in others("threshold")
    ]
    named += [(f"gate {row['threshold']:g} of ln V", row) for row in others("threshold", "measure")]
    named += [(f"{row['window_check']} window", row) for row in others("window_check")]
    named += [(f"K={row['tokens']}", row) for row in others("tokens")]
    named += [
        (f"margin {row['margin']:g} nats", row) for row in data.find(arm, "margin", tokens=tokens)
    ]
    named += [
        (f"typical ({row['epsilon']:g}, {row['delta']:.2g})", row)
        for row in data.find(arm, "typical", tokens=tokens)
    ]
    about = data.arms[arm].drafter.rpartition(",")[0]

    def value(key: str) -> Callable[[tuple[str, Row]], Interval | None]:
        return lambda line: Interval(**line[1][key]) if line[1][key] else None

    return make_table(
        named,
        Column(f"{about[0].upper()}{about[1:]}", lambda line: line[0]),
        Column("tokens per pass (tau)", value("tau"), ".2f", best=max),
        Column(
            "over exact, same K",
            lambda line: None if line[0] == "exact" else value("tau_over_exact")(line),
            ".3f",
        ),
        Column("mismatches kept, %", value("loosened_share"), ".1%"),
        Column("loosened per 100 tokens", value("loosened_tokens"), ".2f"),
        Column("regret of kept, nats", value("regret"), ".2f"),
        note=f"K={tokens}, W={centre['window']}, gate {centre['threshold']:g} nats, "
        f"{centre['window_check']} window unless the row says otherwise. Kept: of the mismatches "
        "up to the first rejected one of a round. Regret: mean ln p(target's choice) - ln p(kept). "
        f"{INTERVALS}; over prompts.",
    )


def draw_tradeoff(data: ReplayRows, folder: Path) -> Figure:
    """Gain in tau over the likelihood given up, a curve per rule; a panel per drafter."""
    table: list[dict[str, Any]] = []
    tokens = data.centre["tokens"]
    windows = sorted({row["window"] for row in data.rows if row["rule"] == "fly"})
    for arm, about in data.arms.items():
        opened = data.fly(arm, "window", "threshold")
        curves = {f"FLy, W={w}": [row for row in opened if row["window"] == w] for w in windows}
        for rule in ("margin", "typical"):
            curves[rule] = data.find(arm, rule, tokens=tokens)
        table += [
            {"arm": arm, "drafter": about.drafter.rpartition(",")[0], "rule": rule,
             "nats_per_100_tokens": given_up, "tau_over_exact": tau}
            for rule, rows in curves.items()
            for given_up, tau in sorted(
                (_given_up(row), row["tau_over_exact"]["value"]) for row in rows
            )
        ]  # fmt: skip
    with lines(
        folder, "replay", table, by="rule", panel="drafter",
        x=("nats_per_100_tokens", "likelihood given up, nats per 100 tokens"),
        y=("tau_over_exact", "tokens per pass over exact"), size=(5.2 * len(data.arms), 3.9),
        style=lambda rule: {"margin": "s--", "typical": "^:"}.get(rule, "o-"),
    ):  # fmt: skip
        pass
    return Figure(
        "replay",
        f"Offline, K={tokens}: tokens per pass over exact verification against the summed regret "
        "of what was kept; along a curve of FLy the gate opens. Higher at equal regret is better.",
    )


def _given_up(row: Row) -> float:
    """Summed regret per 100 tokens, nats."""
    regret = row["regret"]["value"] if row["regret"] else 0.0
    return float(row["loosened_tokens"]["value"] * regret)
