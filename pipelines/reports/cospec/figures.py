"""Figures of the CoSpec report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effllm.pipelines.reports.cospec.study import TITLES, Study
from effllm.pipelines.reports.figures import COLOURS, figure, lines, write_csv
from effllm.pipelines.reports.page import Figure

_SHOWN = ("rl", "rl_speed", "warm", "difference", "entropy")  # frontiers drawn
_LEARNED = frozenset(
    {"acceptance", "effective_share", "entropy", "kl_from_reference", "reward", "same_rewards"}
)


def draw_headroom(studies: Sequence[Study], folder: Path) -> Figure:
    """Cells of all forks, a bar per pair."""
    names = {
        "01": "only the draft's token is right",
        "10": "only the target's",
        "11": "both",
        "00": "none",
    }
    table: list[dict[str, Any]] = []
    with figure(folder, "headroom", size=(9, 0.6 * len(studies) + 1.4)) as axes:
        for place, study in enumerate(reversed(studies)):
            cells, left = study.headroom["cells"], 0.0
            total = max(1, sum(cells.values()))
            for (cell, name), colour in zip(names.items(), COLOURS, strict=False):
                share = 100 * cells[cell] / total
                label = name if place == 0 else None
                axes.barh(place, share, left=left, color=colour, label=label, height=0.7)
                left += share
                table.append({"pair": study.name, "cell": cell, "forks": cells[cell]})
        axes.set_yticks(range(len(studies)), [study.name for study in reversed(studies)])
        axes.set_xlabel("% of forks")
        axes.grid(visible=False)
        axes.figure.legend(loc="outside upper right", ncols=4, fontsize=9)
    write_csv(folder, "headroom", table)
    return Figure(
        "headroom",
        "Forks of validation problems by what is right in the end: only the first part can make "
        "arbitration better than the target.",
    )


def draw_frontier(studies: Sequence[Study], folder: Path) -> Figure:
    """Right answers against predicted speed-up at every threshold, a panel per pair."""
    table = [
        {
            "pair": study.name,
            "rule": rule,
            "title": TITLES[rule],
            "right_percent": 100 * point["accuracy"],
            **point,
        }
        for study in studies
        for rule in _SHOWN
        for point in study.figures["frontiers"].get(rule, [])
    ]
    with lines(
        folder, "frontier", table, by="title", panel="pair",
        x=("predicted_speed", "predicted speed-up"), y=("right_percent", "right, %"),
        size=(4.2 * len(studies), 3.8), style=lambda rule: "-",
    ) as panels:  # fmt: skip
        for axes, study in zip(panels, studies, strict=True):
            target = 100 * study.right["target"].mean()
            axes.axhline(target, color="#7f7f7f", linestyle=":", linewidth=1)
    return Figure(
        "frontier",
        "Test problems at every threshold, from never to always taking the draft's token; policies "
        "of the first seed. Dotted: the target. Drawn for reading; no choice was made on it.",
    )


def draw_learning(studies: Sequence[Study], folder: Path) -> Figure | None:
    """Mean reward of the rollouts, seed by seed; None where there was no reinforcement."""
    table = [
        {"pair": study.name, **row}
        for study in studies
        for row in study.curves
        if row["name"] in _LEARNED
    ]
    if not table:
        return None
    with figure(folder, "learning", size=(9, 3.6)) as axes:
        for study, colour in zip(studies, COLOURS, strict=False):
            by_seed = defaultdict(list)
            for row in study.curves:
                if row["name"] == "reward":
                    by_seed[row["seed"]].append(100 * float(row["value"]))
            for values in by_seed.values():
                axes.plot(values, color=colour, alpha=0.25, linewidth=0.8)
            if by_seed:
                mean = np.mean(list(by_seed.values()), axis=0)
                axes.plot(mean, color=colour, label=study.name)
        axes.set_xlabel("iteration")
        axes.set_ylabel("reward of rollouts, %")
        axes.legend()
    write_csv(folder, "learning", table)
    return Figure(
        "learning",
        "Reinforcement: mean reward of rollouts on training problems, seeds pale, their mean dark. "
        "Rollouts take either action with a floor, so they are below the policy.",
    )


def draw_reliability(studies: Sequence[Study], folder: Path) -> Figure | None:
    """What the policy says of a fork against what comes of it."""
    table = [
        {"pair": study.name, **found} for study in studies for found in study.figures["reliability"]
    ]
    if not table:
        return None
    x, y = ("said", "policy's chance for the draft's token"), ("won", "share that it wins")
    with lines(folder, "reliability", table, by="pair", x=x, y=y, size=(5, 4)) as (axes,):
        axes.plot([0, 1], [0, 1], color="#7f7f7f", linestyle=":", linewidth=1)
    return Figure(
        "reliability",
        "Decisive forks of test problems by the score of the first seed's reinforced policy.",
    )
