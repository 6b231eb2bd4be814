"""Figures of the permutation report."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.reports.figures import COLOURS, figure, lines, write_csv
from effllm.pipelines.reports.models.comparison import Comparison
from effllm.pipelines.reports.page import Figure
from effllm.pipelines.reports.permutation.names import LEARNT, SEARCHES
from effllm.pipelines.reports.permutation.tables import found_by
from effllm.pipelines.reports.results import Results

_CURVES = {"loss": "calibration text", "heldout_loss": "held-out text"}
_SHARE = "held-out error,\nno order = 1"
_DRAWN = ("gather/ria", "gather/swaps", "gather/loss_swaps", "gather/jointly", "gather/paper")


def draw_errors(data: Comparison, results: Results, folder: Path, pattern: str) -> Figure | None:
    """Held-out error by what reads a site, as a share of the error without an order."""
    table = _shares(data, results, pattern, "site", lambda site: site.partition(".")[2])
    if not table:
        return None
    orders, sites = (list(dict.fromkeys(row[key] for row in table)) for key in ("order", "site"))
    width = 0.8 / len(orders)
    with figure(folder, "errors", size=(8.5, 3.6)) as axes:
        for place, (colour, order) in enumerate(zip(COLOURS, orders, strict=False)):
            shares = {row["site"]: row["share"] for row in table if row["order"] == order}
            left = [sites.index(site) + (place - (len(orders) - 1) / 2) * width for site in shares]
            axes.bar(left, list(shares.values()), width, label=order, color=colour)
        axes.axhline(1.0, color="#7f7f7f", linestyle="--", linewidth=1)
        axes.set_ylim(0, 1.4)  # room for the legend
        axes.set_xticks(range(len(sites)), [site.rpartition(".")[2] for site in sites])
        axes.set_ylabel(_SHARE)
        axes.legend(ncols=2, fontsize=9)
    write_csv(folder, "errors", table)
    return Figure("errors", "Held-out error of the layers after Wanda, by what reads.")


def draw_blocks(data: Comparison, results: Results, folder: Path, pattern: str) -> Figure | None:
    """Held-out error by decoder block."""
    table = _shares(data, results, pattern, "block", lambda site: int(site.partition(".")[0]))
    if not table:
        return None
    x, y = ("block", "decoder block"), ("share", _SHARE)
    with lines(folder, "blocks", table, by="order", x=x, y=y, size=(8.5, 3.2)) as (axes,):
        axes.axhline(1.0, color="#7f7f7f", linestyle="--", linewidth=1)
    return Figure("blocks", "The same by decoder block, mean over its sites.")


def draw_learning(data: Comparison, results: Results, folder: Path, pattern: str) -> Figure | None:
    """Loss over steps of the learning through the whole model."""
    table: list[dict[str, Any]] = []
    for kind in ("paper", "permllm", "jointly"):
        permutation = _found(data, results, pattern, f"gather/{kind}")
        if permutation is not None:
            with (permutation.path / "curve.csv").open(newline="") as file:
                table += [
                    {
                        "order": LEARNT[kind],
                        "text": _CURVES[row["name"]],
                        "step": int(row["step"]),
                        "loss": float(row["value"]),
                    }
                    for row in csv.DictReader(file)
                    if row["name"] in _CURVES
                ]
    if not table:
        return None
    x, y = ("step", "step"), ("loss", "loss")
    with lines(folder, "learning", table, by="text", panel="order", x=x, y=y, size=(9.5, 3.0)):
        pass
    return Figure(
        "learning",
        "Loss step by step. Where held-out text was looked at, the best look is kept, the order "
        "that learning began with among them.",
    )


def draw_order(data: Comparison, results: Results, folder: Path, pattern: str) -> Figure | None:
    """Where the channels of one site went, searched and learned from there."""
    table = []
    for kind in ("loss_swaps", "learned"):
        permutation = _found(data, results, pattern, f"gather/{kind}")
        if permutation is not None:
            site, order = next(iter(permutation.orders().items()))
            table += [
                {"site": site, "order": (SEARCHES | LEARNT)[kind], "place": place, "channel": one}
                for place, one in enumerate(order.tolist())
            ]
    if not table:
        return None
    orders = list(dict.fromkeys(row["order"] for row in table))
    with figure(folder, "order", size=(8.5, 4.2), panels=len(orders), squeeze=False) as grid:
        for axes, order in zip(grid[0], orders, strict=True):
            mine = [row for row in table if row["order"] == order]
            axes.plot(
                [row["place"] for row in mine], [row["channel"] for row in mine], ".", markersize=2
            )
            axes.set_title(order, fontsize=11)
            axes.set_xlabel("place, four to a group")
        grid[0][0].set_ylabel("channel")
    write_csv(folder, "order", table)
    return Figure("order", f"Which channel stands where at site {table[0]['site']}.")


def _found(data: Comparison, results: Results, pattern: str, variant: str) -> Permutation | None:
    """The order that Wanda pruned along in a variant, if it ran."""
    row = data.find("wanda", variant, pattern)
    return found_by(row, results) if row else None


def _shares(
    data: Comparison, results: Results, pattern: str, part: str, of: Callable[[str], Any]
) -> list[dict[str, Any]]:
    """Held-out error over that without an order, by order and part, means over sites."""
    unordered = _found(data, results, pattern, "unchanged")
    if unordered is None:
        return []
    before = {row["site"]: row["heldout_error"] for row in unordered.read_rows("sites.jsonl")}
    table: list[dict[str, Any]] = []
    for variant in _DRAWN:
        permutation = _found(data, results, pattern, variant)
        if permutation is None:
            continue
        shares: dict[Any, list[float]] = defaultdict(list)
        for row in permutation.read_rows("sites.jsonl"):
            shares[of(str(row["site"]))].append(row["heldout_error"] / before[row["site"]])
        title = (SEARCHES | LEARNT)[variant.partition("/")[2]]
        table += [
            {"order": title, part: place, "share": float(np.mean(values))}
            for place, values in (sorted(shares.items()) if part == "block" else shares.items())
        ]
    return table
