"""The figures of the SDS report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from effllm.pipelines.reports.figures import COLOURS, figure, lines, log_ticks, write_csv
from effllm.pipelines.reports.models.comparison import Comparison
from effllm.pipelines.reports.page import Figure
from effllm.pipelines.reports.sds.names import BASES

_CUT = 4.0  # % of weights; exact zeros fill one bin, which is cut so that the rest can be seen


def draw_perplexity(data: Comparison, folder: Path, pattern: str) -> Figure | None:
    """Test perplexity of every method of a pattern, with intervals."""
    rows = [row for row in data.rows if row.pattern == pattern and row.variant != "redense"]
    if not rows:
        return None
    drawn = [(row, data.perplexity(row)) for row in rows]
    with figure(folder, "perplexity", size=(8.5, 0.34 * len(drawn) + 1.2)) as axes:
        for place, (row, interval) in enumerate(reversed(drawn)):
            colour = COLOURS[list(BASES).index(row.base)]
            axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2)
            filled = colour if row.variant.startswith("sds") else "white"
            axes.plot(
                interval.value, place, "o", color=colour, markerfacecolor=filled, markersize=8
            )
        axes.set_yticks(range(len(drawn)), [row.method for row, _ in reversed(drawn)])
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
        value = data.perplexity(data.dense).value
        axes.axvline(value, color="#7f7f7f", linestyle="--", linewidth=1)
        axes.annotate(" dense", (value, len(drawn) - 0.6), color="#5b6675", fontsize=9)
        axes.set_xlabel("test perplexity (log scale), 95 % interval over documents")
    write_csv(
        folder,
        "perplexity",
        [{"method": r.method, "ppl": i.value, "low": i.low, "high": i.high} for r, i in drawn],
    )
    return Figure("perplexity", f"Test perplexity at {pattern}; filled: SDS.")


def draw_histograms(data: Comparison, folder: Path, base: str, pattern: str) -> Figure | None:
    """Weights of one layer along W0, S1, D, S3: the paper's picture."""
    kinds = {"prune": "S1, pruned", "redense": "D, re-dense", "sds": "S3, SDS"}
    rows = {"W0, dense": data.dense} | {
        title: data.find(base, kind, pattern) for kind, title in kinds.items()
    }
    shown = {
        title: row.subject.histogram for title, row in rows.items() if row and row.subject.histogram
    }
    if len(shown) < len(rows):
        return None
    table = []
    with figure(folder, "weights", size=(10, 2.9), panels=len(rows), sharey=True) as panels:
        for axes, (title, histogram) in zip(panels, shown.items(), strict=True):
            counts = np.array(histogram["counts"], dtype=float)
            shares = counts / counts.sum()
            edges = np.linspace(-histogram["limit"], histogram["limit"], len(counts) + 1)
            centres = (edges[1:] + edges[:-1]) / 2
            axes.fill_between(centres, 0, 100 * shares, step="mid", color=COLOURS[0])
            axes.set_ylim(0, _CUT)
            if 100 * shares.max() > _CUT:
                axes.text(0.03, 0.88, f"{100 * shares.max():.0f} % at zero", fontsize=9,
                          transform=axes.transAxes)  # fmt: skip
            axes.set_title(title, fontsize=11)
            axes.set_xlabel("weight")
            table += [
                {"stage": title, "weight": float(x), "share": float(y)}
                for x, y in zip(centres, shares, strict=True)
            ]
        panels[0].set_ylabel("% of weights")
    write_csv(folder, "weights", table)
    return Figure(
        "weights",
        f"SparseGPT, {pattern}. In the paper's picture W0 is one lobe, S1 two lobes with a hole, D "
        "three peaks and S3 two softened lobes; compare.",
    )


def draw_layer_errors(data: Comparison, folder: Path, base: str, pattern: str) -> Figure | None:
    """Layer error by decoder block."""
    kinds = {
        "prune": "S1, one-shot",
        "refit": "S1 + refit",
        "early_exit": "S2, early exit",
        "sds": "S3, SDS",
    }
    rows = {title: data.find(base, kind, pattern) for kind, title in kinds.items()}
    table = [
        {
            "model": title,
            "block": block,
            "error": float(
                np.mean([e["error"] for e in row.subject.layers if e["block"] == block])
            ),
        }
        for title, row in rows.items()
        if row is not None
        for block in sorted({entry["block"] for entry in row.subject.layers})
    ]
    if not table:
        return None
    x, y = ("block", "decoder block"), ("error", "relative output error")
    with lines(folder, "layer_errors", table, by="model", x=x, y=y, size=(8.5, 3.4)) as (axes,):
        axes.set_ylim(bottom=0)
    return Figure(
        "layer_errors",
        "Mean relative output error per block on the dense model's held-out inputs; SparseGPT, "
        f"{pattern}.",
    )
