"""Tables and rows of the FLy report, and the picture of what rounds kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.decoders.bench import Bench
from effllm.pipelines.reports.figures import figure, write_csv
from effllm.pipelines.reports.page import Figure, Table
from effllm.pipelines.reports.results import ResultRow
from effllm.pipelines.reports.table import Column, columns, make_table


def gate_table(bench: Bench) -> Table | None:
    """How often the gate is open at mismatches, and its quantiles; None if nothing was judged."""
    events = {
        arm: [event for row in mine for event in row.get("events", [])]
        for arm, mine in bench.arms.items()
    }
    gates = {
        arm: np.array([event["gate"] for event in mine if event["gate"] is not None])
        for arm, mine in events.items()
    }

    def kept(arm: str) -> float:
        return float(np.mean([event["loosened"] for event in events[arm]]))

    judged = [arm for arm in bench.arms if len(gates[arm])]
    if not judged:
        return None
    return make_table(
        judged,
        Column("Arm", lambda arm: bench.about[arm].title),
        Column("mismatches", lambda arm: str(len(gates[arm]))),
        Column("at least 0.3 nats, %", lambda arm: float(np.mean(gates[arm] >= 0.3)), ".0%"),
        Column("kept, %", kept, ".0%"),
        *columns(
            {share: f"{100 * share:g} % quantile" for share in (0.1, 0.25, 0.5, 0.75, 0.9)},
            lambda arm, share: float(np.quantile(gates[arm], share)),
            ".2f",
        ),
        note="The measure at mismatches that were judged: entropy of the three most likely tokens "
        "of the target, nats.",
    )


def draw_acceptance(bench: Bench, folder: Path) -> Figure | None:
    """How many drafted tokens each round kept, a bar per arm with drafts."""
    import matplotlib as mpl

    arms = [arm for arm, about in bench.about.items() if about.speculates]
    if not arms:
        return None
    longest = max(bench.about[arm].tokens for arm in arms)
    shades = mpl.colormaps["viridis_r"](np.linspace(0.05, 0.95, longest + 1))
    table: list[dict[str, Any]] = []
    with figure(folder, "acceptance", size=(9, 0.42 * len(arms) + 1.3)) as axes:
        for place, arm in enumerate(reversed(arms)):
            counts = Counter(kept for row in bench.arms[arm] for kept in row["accepted_counts"])
            left, rounds = 0.0, max(sum(counts.values()), 1)
            for kept in range(longest + 1):
                share = 100 * counts[kept] / rounds
                axes.barh(place, share, left=left, color=shades[kept], height=0.72)
                left += share
                table.append({"arm": arm, "kept": kept, "rounds": counts[kept], "percent": share})
        axes.set_yticks(range(len(arms)), [bench.about[arm].title for arm in reversed(arms)])
        axes.set_xlabel("% of rounds")
        axes.set_xlim(0, 100)
        axes.grid(visible=False)
        boxes = [mpl.patches.Patch(color=shades[kept]) for kept in range(longest + 1)]
        names = [str(kept) for kept in range(longest + 1)]
        axes.figure.legend(
            boxes, names, loc="outside upper right", ncols=longest + 1, fontsize=9,
            title="drafted tokens kept", title_fontsize=9, handlelength=1, columnspacing=0.8,
        )  # fmt: skip
    write_csv(folder, "acceptance", table)
    return Figure("acceptance", "Drafted tokens kept per round; rounds without a draft count as 0.")


def result_rows(bench: Bench, benched: Artifact) -> list[ResultRow]:
    """Rows of `results.json`, an arm each."""
    found = []
    for arm, about in bench.about.items():
        measures: dict[str, Interval | None] = {
            "tokens_per_second": bench.speed(arm),
            "speed_over_plain": bench.speed_ratio(arm, "plain"),
            "acceptance_length": bench.acceptance_length(arm),
            "target_passes_per_token": bench.ratio(arm, "rounds", "emitted"),
            "drafter_passes_per_token": bench.ratio(arm, "draft_passes", "emitted"),
            "loosened_per_100_tokens": bench.ratio(arm, "loosened", "tokens", 100),
            "target_nll": bench.mean(arm, "nll"),
            "target_nll_over_plain": bench.change(arm, "plain", "nll"),
            "distinct_2": bench.mean(arm, "distinct"),
            "longest_repeat_tokens": bench.mean(arm, "longest_repeat"),
        }
        known = {key: figure for key, figure in measures.items() if figure is not None}
        found.append(
            ResultRow(
                paper="fly",
                method=arm,
                title=about.title,
                pattern="",
                seed=benched.manifest["seed"],
                artifact=benched.label,
                figures={"lossless": about.lossless, **known},
                n=dict.fromkeys(known, len(bench.arms[arm])),
            )
        )
    return found
