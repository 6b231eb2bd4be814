"""Figures of the Amphista report: tokens per pass by tree, learning curves, and a tree itself."""

from __future__ import annotations

import csv
from pathlib import Path

from effllm.pipelines.reports.amphista.scores import AMPHISTA, MEDUSA, Study
from effllm.pipelines.reports.figures import COLOURS, figure, lines, write_csv
from effllm.pipelines.reports.page import Figure


def draw_tau(study: Study, folder: Path) -> Figure:
    """Tokens per pass against nodes."""
    table = [
        {"arm": arm, "nodes": count, "tau": tau.value, "low": tau.low, "high": tau.high}
        for arm in study.arms
        for count, tau in ((count, study.tau(arm, count)) for count in study.nodes)
    ]
    with lines(
        folder, "tau", table, by="arm", x=("nodes", "nodes of the tree"),
        y=("tau", "tokens per pass"), size=(8.5, 4.6),
        style=lambda arm: "o-" if arm in _shown(study) else "o:",
    ) as (axes,):  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(study.nodes, [str(count) for count in study.nodes])
    return Figure(
        "tau",
        "Tokens per pass with the best tree of so many nodes. Dotted: controls and ablations.",
    )


def draw_curves(study: Study, folder: Path) -> Figure | None:
    """How heads learn: right guesses on held-out texts while training goes on, seed 0."""
    from effllm.modules.heads.asking import accuracies

    table = []
    for arm in (arm for arm in _shown(study) if arm in study.arms):
        trained = study.arms[arm][0].heads
        config, steps = trained.manifest["config"], int(trained.manifest["metrics"]["steps"])
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
            logged = {(int(row["step"]) - 1, row["name"]): row["value"]
                      for row in csv.DictReader(file)}  # fmt: skip
        for head in range(1, study.heads + 1):
            points = {step: float(logged[step, f"heldout/top1/{head}"]) for step in judged}
            points[steps] = last[f"top1/{head}"]
            table += [
                {"arm": arm, "head": head, "step": step, "right_percent": 100 * share}
                for step, share in points.items()
            ]
    if not table:
        return None
    x, y = ("step", "updates"), ("right_percent", "right, %")
    with lines(folder, "curves", table, by="head", panel="arm", x=x, y=y, size=(9.5, 3.4)):
        pass
    return Figure(
        "curves",
        "First guesses that are right on some held-out texts, %, while heads learn (seed 0).",
    )


def draw_tree(study: Study, nodes: int, folder: Path) -> Figure | None:
    """Amphista's tree of so many nodes, seed 0."""
    if AMPHISTA not in study.arms:
        return None
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
