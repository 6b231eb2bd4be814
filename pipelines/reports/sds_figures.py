"""The figures of the SDS report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from effllm.pipelines.reports.comparison import Comparison
from effllm.pipelines.reports.figures import COLOURS, figure, write_csv
from effllm.pipelines.reports.sds import BASES, order_in_table


def draw_perplexity(data: Comparison, folder: Path, pattern: str) -> None:
    """Test perplexity of every method of a pattern, with intervals."""
    rows = sorted((r for r in data.rows if r.pattern == pattern), key=order_in_table)
    dense = data.find("dense", "dense")
    drawn = [(row, data.perplexity(row)) for row in rows if row.variant != "redense"]
    with figure(folder, "perplexity", size=(8.5, 0.42 * len(drawn) + 1.2)) as axes:
        for place, (row, interval) in enumerate(reversed(drawn)):
            colour = COLOURS[list(BASES).index(row.base)]
            axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2)
            filled = colour if row.variant.startswith("sds") else "white"
            axes.plot(
                interval.value, place, "o", color=colour, markerfacecolor=filled, markersize=8
            )
        axes.set_yticks(range(len(drawn)), [row.method for row, _ in reversed(drawn)])
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        steps = [a * 10**b for b in range(7) for a in (1, 2, 3, 5, 7)]
        ticks = [tick for tick in steps if low <= tick <= high]
        axes.set_xticks(ticks if len(ticks) < 9 else ticks[::2], minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        if dense is not None:
            value = data.perplexity(dense).value
            axes.axvline(value, color="#7f7f7f", linestyle="--", linewidth=1)
            axes.annotate(" dense", (value, len(drawn) - 0.6), color="#5b6675", fontsize=9)
        axes.set_xlabel("test perplexity (log scale), 95 % interval over documents")
    write_csv(
        folder,
        "perplexity",
        [{"method": r.method, "ppl": i.value, "low": i.low, "high": i.high} for r, i in drawn],
    )


def draw_histograms(data: Comparison, folder: Path, base: str, pattern: str) -> bool:
    """Weights of one layer along W0, S1, D, S3: the paper's picture. False if rows are missing."""
    stages = [("dense", "W0, dense"), ("prune", "S1, pruned"), ("redense", "D, re-dense"),
              ("sds", "S3, SDS")]  # fmt: skip
    rows = [(data.find("dense" if v == "dense" else base, v, pattern), t) for v, t in stages]
    shown = [(row.subject.histogram, title) for row, title in rows if row is not None]
    if len(shown) < len(stages) or any(histogram is None for histogram, _ in shown):
        return False
    table = []
    with figure(folder, "weights", size=(10, 2.9), panels=4, sharey=True) as axes:
        for axis, (histogram, title) in zip(axes, shown, strict=True):
            assert histogram is not None
            counts = np.array(histogram["counts"], dtype=float)
            share = counts / counts.sum()
            edges = np.linspace(-histogram["limit"], histogram["limit"], len(counts) + 1)
            centres = (edges[1:] + edges[:-1]) / 2
            axis.fill_between(centres, 0, 100 * share, step="mid", color=COLOURS[0])
            # Exact zeros fill one bin; it is cut so that the rest can be seen.
            axis.set_ylim(0, 4.0)
            if 100 * share.max() > 4.0:
                axis.text(0.03, 0.88, f"{100 * share.max():.0f} % at zero", fontsize=9,
                          transform=axis.transAxes)  # fmt: skip
            axis.set_title(title, fontsize=11)
            axis.set_xlabel("weight")
            table += [
                {"stage": title, "weight": float(x), "share": float(y)}
                for x, y in zip(centres, share, strict=True)
            ]
        axes[0].set_ylabel("% of weights")
    write_csv(folder, "weights", table)
    return True


def draw_layer_errors(data: Comparison, folder: Path, base: str, pattern: str) -> bool:
    """Layer error by decoder block. False if there are no rows to draw."""
    kinds = [("prune", "S1, one-shot"), ("refit", "S1 + refit"), ("early_exit", "S2, early exit"),
             ("sds", "S3, SDS")]  # fmt: skip
    rows = [(data.find(base, kind, pattern), title) for kind, title in kinds]
    drawn = [(row, title) for row, title in rows if row is not None and row.subject.layers]
    if not drawn:
        return False
    table = []
    with figure(folder, "layer_errors", size=(8.5, 3.4)) as axes:
        for colour, (row, title) in zip(COLOURS, drawn, strict=False):
            blocks = sorted({entry["block"] for entry in row.subject.layers})
            means = [
                float(np.mean([e["error"] for e in row.subject.layers if e["block"] == block]))
                for block in blocks
            ]
            axes.plot(blocks, means, "o-", markersize=3.5, color=colour, label=title)
            table += [
                {"model": title, "block": b, "error": e} for b, e in zip(blocks, means, strict=True)
            ]
        axes.set_xlabel("decoder block")
        axes.set_ylabel("relative output error")
        axes.set_ylim(bottom=0)
        axes.legend()
    write_csv(folder, "layer_errors", table)
    return True
