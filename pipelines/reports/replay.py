"""The offline replay under lossy rules: one knob at a time, and tau against what is given up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effllm.modules.evaluation.intervals import INTERVALS, Interval
from effllm.pipelines.artifacts.decoding import Replay
from effllm.pipelines.reports.arms import Arm
from effllm.pipelines.reports.decoding import interval
from effllm.pipelines.reports.figures import COLOURS, figure, write_csv
from effllm.pipelines.reports.page import Figure, Table

Row = dict[str, Any]
Setting = dict[str, Any]

WHAT_IT_IS = (
    "No model ran for this. At every position of the target's own text a long draft was recorded "
    "with the target's verdict on each of its tokens, also behind the first mismatch; each rule "
    "then walks the text in rounds over the first K tokens of these blocks. For exact verification "
    "that is what decoding does. For the other rules it is exact within a block and an "
    "approximation across blocks: behind a loosened token the walk goes on along the target's own "
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


def knob_table(data: ReplayRows, arm: str) -> Table:
    """One knob at a time around the centre, and the other rules at the same K."""
    tokens, centre = data.centre["tokens"], data.centre
    named = [("exact", row) for row in data.find(arm, "exact", tokens=tokens)]
    named += [("FLy as above", row) for row in data.fly(arm)]
    strong = frozenset([len(named) - 1]) if data.fly(arm) else frozenset()
    named += [
        (f"W={row['window']}", row) for row in data.fly(arm, "window") if not _same(row, centre)
    ]
    named += [
        (f"gate {row['threshold']:g} nats" if row["threshold"] else "no gate", row)
        for row in data.fly(arm, "threshold")
        if not _same(row, centre)
    ]
    named += [
        (f"gate {row['threshold']:g} of ln V", row)
        for row in data.fly(arm, "threshold", "measure")
        if row["measure"] != centre["measure"]
    ]
    named += [
        (f"{row['window_check']} window", row)
        for row in data.fly(arm, "window_check")
        if not _same(row, centre)
    ]
    named += [
        (f"K={row['tokens']}", row) for row in data.fly(arm, "tokens") if not _same(row, centre)
    ]
    named += [
        (f"margin {row['margin']:g} nats", row) for row in data.find(arm, "margin", tokens=tokens)
    ]
    named += [
        (f"typical ({row['epsilon']:g}, {row['delta']:.2g})", row)
        for row in data.find(arm, "typical", tokens=tokens)
    ]
    about = data.arms[arm].drafter.rpartition(",")[0]
    return Table(
        [
            f"{about[0].upper()}{about[1:]}",
            "tokens per pass (tau)",
            "over exact, same K",
            "mismatches kept, %",
            "loosened per 100 tokens",
            "regret of kept, nats",
        ],
        [
            [
                name,
                _cell(row["tau"], 2),
                "" if name == "exact" else _cell(row["tau_over_exact"], 3),
                _cell(row["loosened_share"], 1, 100),
                _cell(row["loosened_tokens"], 2),
                _cell(row["regret"], 2),
            ]
            for name, row in named
        ],
        note=f"K={tokens}, W={centre['window']}, gate {centre['threshold']:g} nats, "
        f"{centre['window_check']} window unless the row says otherwise. Kept: of the mismatches "
        "up to the first rejected one of a round. Regret: mean ln p(target's choice) - ln p(kept). "
        f"{INTERVALS}; over prompts.",
        strong=strong,
    )


def draw_tradeoff(data: ReplayRows, folder: Path) -> Figure:
    """Gain in tau over the likelihood given up, a curve per rule; a panel per drafter."""
    table: list[dict[str, Any]] = []
    tokens = data.centre["tokens"]
    windows = sorted({row["window"] for row in data.rows if row["rule"] == "fly"})
    with figure(
        folder, "replay", size=(5.2 * len(data.arms), 3.9), panels=len(data.arms), squeeze=False
    ) as panels:
        for axes, (arm, about) in zip(panels[0], data.arms.items(), strict=True):
            curves = {
                f"FLy, W={window}": [
                    row for row in data.fly(arm, "window", "threshold") if row["window"] == window
                ]
                for window in windows
            }
            curves["margin"] = data.find(arm, "margin", tokens=tokens)
            curves["typical"] = data.find(arm, "typical", tokens=tokens)
            for place, (name, rows) in enumerate(curves.items()):
                points = sorted((_given_up(row), row["tau_over_exact"]["value"]) for row in rows)
                axes.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    {"margin": "s--", "typical": "^:"}.get(name, "o-"),
                    color=COLOURS[place % len(COLOURS)] if name.startswith("FLy") else "#1c2430",
                    markersize=4,
                    linewidth=1.3,
                    label=name,
                )
                table += [
                    {"arm": arm, "rule": name, "nats_per_100_tokens": x, "tau_over_exact": y}
                    for x, y in points
                ]
            axes.set_title(about.drafter.rpartition(",")[0], fontsize=11)
            axes.set_xlabel("likelihood given up, nats per 100 tokens")
        panels[0][0].set_ylabel("tokens per pass over exact")
        panels[0][-1].legend(fontsize=8)
    write_csv(folder, "replay", table)
    return Figure(
        "replay",
        f"Offline, K={tokens}: tokens per pass over exact verification against the summed regret "
        "of what was kept; along a curve of FLy the gate opens. Higher at equal regret is better.",
    )


def _given_up(row: Row) -> float:
    """Summed regret per 100 tokens, nats."""
    regret = row["regret"]["value"] if row["regret"] else 0.0
    return float(row["loosened_tokens"]["value"] * regret)


def _same(row: Row, settings: Setting) -> bool:
    return all(row[key] == value for key, value in settings.items())


def _cell(value: dict[str, float] | None, digits: int, scale: float = 1.0) -> str:
    return interval(Interval(**value) if value else None, digits, scale=scale)
