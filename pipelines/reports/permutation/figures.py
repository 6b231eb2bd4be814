"""Figures of the permutation report."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.reports.comparison import Comparison
from effllm.pipelines.reports.figures import COLOURS, figure, write_csv
from effllm.pipelines.reports.permutation.names import LEARNT, SEARCHES
from effllm.pipelines.reports.permutation.tables import found_by

_DRAWN = ("gather/ria", "gather/swaps", "gather/loss_swaps", "gather/jointly", "gather/paper")


def draw_errors(data: Comparison, results: list[Artifact], folder: Path, pattern: str) -> bool:
    """Held-out error by kind of site, as a share of the error without an order. False if empty."""
    before = _unordered(data, results, pattern)
    drawn: list[tuple[str, Permutation]] = []
    for variant in _DRAWN:
        row = data.find("wanda", variant, pattern)
        permutation = found_by(row, results) if row else None
        if permutation is not None:
            drawn.append(((SEARCHES | LEARNT)[variant.partition("/")[2]], permutation))
    if not drawn or not before:
        return False
    table = []
    with figure(folder, "errors", size=(8.5, 3.6)) as axes:
        for place, (title, permutation) in enumerate(drawn):
            shares: dict[str, list[float]] = defaultdict(list)
            for site in permutation.read_rows("sites.jsonl"):
                kind = str(site["site"]).partition(".")[2]
                shares[kind].append(site["heldout_error"] / before[site["site"]])
            kinds = list(shares)
            values = [float(np.mean(shares[kind])) for kind in kinds]
            width = 0.8 / len(drawn)
            axes.bar(
                np.arange(len(kinds)) + (place - (len(drawn) - 1) / 2) * width,
                values,
                width,
                label=title,
                color=COLOURS[place % len(COLOURS)],
            )
            table += [
                {"order": title, "site": kind, "share": value}
                for kind, value in zip(kinds, values, strict=True)
            ]
        axes.axhline(1.0, color="#7f7f7f", linestyle="--", linewidth=1)
        axes.set_ylim(0, 1.4)  # room for the legend
        axes.set_xticks(range(len(kinds)), [_reader(kind) for kind in kinds])
        axes.set_ylabel("held-out error,\nno order = 1")
        axes.legend(ncols=2, fontsize=9)
    write_csv(folder, "errors", table)
    return True


def draw_blocks(data: Comparison, results: list[Artifact], folder: Path, pattern: str) -> bool:
    """Held-out error by decoder block. False if there is nothing to draw."""
    before = _unordered(data, results, pattern)
    table, drawn = [], False
    with figure(folder, "blocks", size=(8.5, 3.2)) as axes:
        for colour, variant in zip(COLOURS, _DRAWN, strict=False):
            row = data.find("wanda", variant, pattern)
            permutation = found_by(row, results) if row else None
            if permutation is None:
                continue
            shares: dict[int, list[float]] = defaultdict(list)
            for site in permutation.read_rows("sites.jsonl"):
                block = int(str(site["site"]).partition(".")[0])
                shares[block].append(site["heldout_error"] / before[site["site"]])
            title = (SEARCHES | LEARNT)[variant.partition("/")[2]]
            means = {block: float(np.mean(values)) for block, values in sorted(shares.items())}
            axes.plot(list(means), list(means.values()), "o-", markersize=3.5, color=colour,
                      label=title)  # fmt: skip
            table += [{"order": title, "block": b, "share": s} for b, s in means.items()]
            drawn = True
        axes.axhline(1.0, color="#7f7f7f", linestyle="--", linewidth=1)
        axes.set_xlabel("decoder block")
        axes.set_ylabel("held-out error,\nno order = 1")
        axes.legend(ncols=2, fontsize=9)
    if drawn:
        write_csv(folder, "blocks", table)
    return drawn


def draw_learning(data: Comparison, results: list[Artifact], folder: Path, pattern: str) -> bool:
    """Loss over steps of the learning through the whole model. False if there is none."""
    table = []
    kinds = [
        kind
        for kind in ("paper", "permllm", "jointly")
        if data.find("wanda", f"gather/{kind}", pattern)
    ]
    if not kinds:
        return False
    with figure(folder, "learning", size=(9.5, 3.0), panels=len(kinds), squeeze=False) as axes:
        for axis, kind in zip(axes[0], kinds, strict=True):
            row = data.find("wanda", f"gather/{kind}", pattern)
            permutation = found_by(row, results) if row else None
            assert permutation is not None
            with (permutation.path / "curve.csv").open(newline="") as file:
                points = [
                    (int(one["step"]), float(one["value"]))
                    for one in csv.DictReader(file)
                    if one["name"] == "loss"
                ]
            axis.plot(*zip(*points, strict=True), color=COLOURS[0], linewidth=1.2)
            axis.set_title(LEARNT[kind], fontsize=11)
            axis.set_xlabel("step")
            axis.set_ylabel("training loss")
            table += [{"order": LEARNT[kind], "step": s, "loss": v} for s, v in points]
    write_csv(folder, "learning", table)
    return True


def _unordered(data: Comparison, results: list[Artifact], pattern: str) -> dict[str, float]:
    """Held-out error of each site without a new order; empty if that was not measured."""
    row = data.find("wanda", "unchanged", pattern)
    permutation = found_by(row, results) if row else None
    rows = permutation.read_rows("sites.jsonl") if permutation else []
    return {str(site["site"]): float(site["heldout_error"]) for site in rows}


def _reader(kind: str) -> str:
    """The layers behind a site, for an axis."""
    return kind.rpartition(".")[2]
