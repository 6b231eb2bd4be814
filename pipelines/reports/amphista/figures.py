"""Figures of the Amphista report: tokens per pass by tree, learning curves, and a tree itself."""

from __future__ import annotations

import csv
from pathlib import Path

from effllm.modules.heads.asking import accuracies
from effllm.pipelines.reports.amphista.scores import AMPHISTA, MEDUSA, Study
from effllm.pipelines.reports.figures import COLOURS, figure, write_csv
from effllm.pipelines.reports.page import Figure


def draw_tau(study: Study, folder: Path) -> Figure:
    """Tokens per pass against nodes."""
    table = []
    with figure(folder, "tau", size=(8.5, 4.6)) as axes:
        for place, arm in enumerate(study.arms):
            found = [study.tau(arm, count) for count in study.nodes]
            style = "-" if arm in _shown(study) else ":"
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(
                study.nodes,
                [one.value for one in found],
                style,
                marker="o",
                color=colour,
                label=arm,
            )
            table += [
                {"arm": arm, "nodes": count, "tau": one.value, "low": one.low, "high": one.high}
                for count, one in zip(study.nodes, found, strict=True)
            ]
        axes.set_xscale("log", base=2)
        axes.set_xticks(study.nodes, [str(count) for count in study.nodes])
        axes.set_xlabel("nodes of the tree")
        axes.set_ylabel("tokens per pass")
        axes.legend(fontsize=8)
    write_csv(folder, "tau", table)
    return Figure(
        "tau",
        "Tokens per pass with the best tree of so many nodes. Dotted: controls and ablations.",
    )


def draw_curves(study: Study, folder: Path) -> Figure:
    """How heads learn: right guesses on held-out texts while training goes on, seed 0."""
    table = []
    arms = [arm for arm in _shown(study) if arm in study.arms]
    heads = int(study.drafters[0].heads.about["settings"]["heads"])
    with figure(folder, "curves", size=(9.5, 3.4), panels=len(arms), sharey=True) as panels:
        for axes, arm in zip([panels] if len(arms) == 1 else panels, arms, strict=True):
            trained = study.arms[arm][0].heads
            config, metrics = trained.manifest["config"], trained.manifest["metrics"]
            steps = int(metrics["steps"])
            epoch = steps // int(config["epochs"])
            # Judged before every so many steps of an epoch, and after the last.
            judged = [
                first + step
                for first in range(0, steps, epoch)
                for step in range(0, epoch, int(config["judged_every"]))
            ]
            ranks, texts = trained.ranks()
            last = accuracies(ranks[texts < int(config["judged_texts"])])
            with (trained.path / "curve.csv").open(newline="", encoding="utf-8") as file:
                logged = {
                    (int(row["step"]) - 1, row["name"]): row["value"]
                    for row in csv.DictReader(file)
                }
            for head in range(1, heads + 1):
                points = [
                    (step, 100 * float(logged[step, f"heldout/top1/{head}"])) for step in judged
                ]
                points.append((steps, 100 * last[f"top1/{head}"]))
                axes.plot(
                    *zip(*points, strict=True),
                    marker=".",
                    color=COLOURS[head - 1],
                    label=f"head {head}",
                )
                table += [
                    {"arm": arm, "head": head, "step": step, "right_percent": value}
                    for step, value in points
                ]
            axes.set_title(arm, fontsize=10)
            axes.set_xlabel("updates")
        axes.legend(fontsize=8)
    write_csv(folder, "curves", table)
    return Figure(
        "curves",
        "First guesses that are right on some held-out texts, %, while heads learn (seed 0).",
    )


def draw_tree(study: Study, nodes: int, folder: Path) -> Figure:
    """Amphista's tree of so many nodes, seed 0."""
    tree = study.arms[AMPHISTA][0].scores.trees()[nodes]
    children: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for node in sorted(tree):
        children.setdefault(node[:-1], []).append(node)
    across: dict[tuple[int, ...], float] = {}
    leaves = iter(range(len(tree) + 1))

    def place(node: tuple[int, ...]) -> float:
        mine = [place(child) for child in children.get(node, [])]
        across[node] = sum(mine) / len(mine) if mine else float(next(leaves))
        return across[node]

    place(())
    with figure(folder, "tree", size=(9, 3.6)) as axes:
        for node in tree:
            axes.plot(
                [across[node[:-1]], across[node]], [len(node) - 1, len(node)], color="#9aa5b1"
            )
        for node, x in across.items():
            axes.plot(x, len(node), "o", color=COLOURS[0], markersize=15)
            label = str(node[-1] + 1) if node else "•"
            axes.text(x, len(node), label, color="white", ha="center", va="center", fontsize=9)
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.set_yticks(range(max(map(len, across)) + 1))
        axes.set_ylabel("token ahead")
        axes.grid(visible=False)
    write_csv(
        folder, "tree", [{"ranks": " ".join(str(rank + 1) for rank in node)} for node in tree]
    )
    return Figure(
        "tree",
        f"The {len(tree)} guesses of Amphista's tree: which guess of each head follows which; 1 is "
        "a head's first.",
    )


def _shown(study: Study) -> list[str]:
    """The arms that the question is about."""
    return [arm for arm in (MEDUSA, study.matched, AMPHISTA) if arm]
