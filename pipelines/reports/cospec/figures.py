"""Figures of the CoSpec report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effllm.pipelines.reports.cospec.study import TITLES, Study
from effllm.pipelines.reports.figures import COLOURS, figure, write_csv
from effllm.pipelines.reports.page import Figure

_SHOWN = ("rl", "rl_speed", "warm", "difference", "entropy")  # frontiers drawn


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
    table: list[dict[str, Any]] = []
    size = (4.2 * len(studies), 3.8)
    with figure(folder, "frontier", size=size, panels=len(studies), squeeze=False) as grid:
        for axes, study in zip(grid[0], studies, strict=True):
            for rule, colour in zip(_SHOWN, COLOURS, strict=False):
                points = study.figures["frontiers"].get(rule, [])
                axes.plot(
                    [one["predicted_speed"] for one in points],
                    [100 * one["accuracy"] for one in points],
                    color=colour, label=TITLES[rule], linewidth=1.4,
                )  # fmt: skip
                table += [{"pair": study.name, "rule": rule, **one} for one in points]
            target = 100 * study.right["target"].mean()
            axes.axhline(target, color="#7f7f7f", linestyle=":", linewidth=1)
            axes.set_title(study.name, fontsize=11)
            axes.set_xlabel("predicted speed-up")
        grid[0][0].set_ylabel("right, %")
        handles, labels = grid[0][0].get_legend_handles_labels()
        grid[0][0].figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    write_csv(folder, "frontier", table)
    return Figure(
        "frontier",
        "Test problems at every threshold, from never to always taking the draft's token; policies "
        "of the first seed. Dotted: the target. Drawn for reading; no choice was made on it.",
    )


def draw_learning(studies: Sequence[Study], folder: Path) -> list[Figure]:
    """Mean reward of the rollouts, seed by seed; none where there was no reinforcement."""
    table = [
        {"pair": study.name, **row}
        for study in studies
        for row in study.curves
        if row["name"] in ("reward", "acceptance", "same_rewards", "kl_from_reference")
        or row["name"] in ("effective_share", "entropy")
    ]
    if not table:
        return []
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
    return [
        Figure(
            "learning",
            "Reinforcement: mean reward of rollouts on training problems, seeds pale, their mean "
            "dark. Rollouts take either action with a floor, so they are below the policy.",
        )
    ]


def draw_reliability(studies: Sequence[Study], folder: Path) -> Figure:
    """What the policy says of a fork against what comes of it."""
    table: list[dict[str, Any]] = []
    with figure(folder, "reliability", size=(5, 4)) as axes:
        axes.plot([0, 1], [0, 1], color="#7f7f7f", linestyle=":", linewidth=1)
        for study, colour in zip(studies, COLOURS, strict=False):
            bins = study.figures["reliability"]
            said, won = ([one[key] for one in bins] for key in ("said", "won"))
            axes.plot(said, won, marker="o", color=colour, label=study.name)
            table += [{"pair": study.name, **one} for one in bins]
        axes.set_xlabel("policy's chance for the draft's token")
        axes.set_ylabel("share that it wins")
        axes.legend()
    if table:
        write_csv(folder, "reliability", table)
    return Figure(
        "reliability",
        "Decisive forks of test problems by the score of the first seed's reinforced policy.",
    )
