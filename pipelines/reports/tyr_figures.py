"""The figures of the Týr report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from effllm.pipelines.artifacts.structural import Allocation
from effllm.pipelines.reports.comparison import Comparison, Row
from effllm.pipelines.reports.figures import COLOURS, figure, write_csv
from effllm.pipelines.reports.tyr import sparsities
from effllm.pipelines.reports.tyr_speed import Speedup

_HIGHEST = 50  # times the dense model's perplexity; what is worse needs no picture


def draw_allocations(rows: Sequence[Row], units: dict[str, int], folder: Path) -> bool:
    """Removed share of every sub-layer of the searched models. False without any."""
    searched = [row for row in rows if row.base.startswith("searched")]
    if not searched:
        return False
    table = []
    size = (8.5, 1.1 + 1.5 * len(searched))
    with figure(folder, "allocation", size=size) as axes:
        lines, labels = [], []
        for row in searched:
            removed = row.subject.history[-1]["removed"]
            for kind, title in (("attention", "heads"), ("ffn", "neurons")):
                names = sorted(name for name in removed if name.endswith(kind))
                shares = [removed[name] / units[name] for name in names]
                lines.append(shares)
                labels.append(f"{row.method}, {row.pattern}: {title}")
                table += [
                    {"model": row.method, "sparsity": row.pattern, "sublayer": name, "removed": one}
                    for name, one in zip(names, shares, strict=True)
                ]
        picture = axes.imshow(np.array(lines), aspect="auto", vmin=0, vmax=1, cmap="viridis")
        axes.set_yticks(range(len(labels)), labels, fontsize=9)
        axes.set_xlabel("decoder block")
        axes.grid(False)
        axes.figure.colorbar(picture, ax=axes, label="removed share")
    write_csv(folder, "allocation", table)
    return True


def draw_fitness(searches: Mapping[str, Allocation], folder: Path) -> bool:
    """Fitness of the parent over generations; a line breaks where the text is drawn anew."""
    table = []
    with figure(folder, "fitness", size=(8.5, 3.4)) as axes:
        for number, (name, one) in enumerate(searches.items()):
            colour = COLOURS[number % len(COLOURS)]
            style = "o-" if number < len(COLOURS) else "s--"
            history = one.read_rows("history.jsonl")
            texts = sorted({row["text"] for row in history})
            for text in texts:
                mine = [row for row in history if row["text"] == text]
                steps = [mine[0]["generation"], *(row["generation"] + 1 for row in mine)]
                values = [mine[0]["parent_fitness"], *(row["fitness"] for row in mine)]
                label = name if text == texts[0] else None
                axes.plot(steps, values, style, markersize=3, color=colour, label=label)
            table += [{"search": name, **_plain(row)} for row in history]
        axes.set_xlabel("generation")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("KL from dense, nats per token")
        if table:
            axes.figure.legend(loc="outside center right", fontsize=9)
    if table:
        write_csv(folder, "fitness", table)
    return bool(table)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("generation", "text", "parent_fitness", "fitness")
    return {key: row[key] for key in keys}


def draw_pareto(data: Comparison, speeds: Sequence[Speedup], folder: Path) -> bool:
    """Test perplexity against measured decoding speed."""
    if not speeds:
        return False
    table = []
    kinds = list(dict.fromkeys(one.row.method for one in speeds))
    with figure(folder, "pareto", size=(8.5, 4.2)) as axes:
        for colour, kind in zip(COLOURS * 2, kinds, strict=False):
            mine = [one for one in speeds if one.row.method == kind]
            mine.sort(key=lambda one: one.row.pattern)
            points = [(one.tokens_per_second, data.perplexity(one.row).value) for one in mine]
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=kind, markersize=6)
            for one, (x, y) in zip(mine, points, strict=True):
                axes.annotate(f" {one.row.pattern}", (x, y), fontsize=8, color="#5b6675")
                table.append(
                    {
                        "model": kind,
                        "sparsity": one.row.pattern,
                        "tokens_per_second": x,
                        "test_perplexity": y,
                    }
                )
        axes.set_yscale("log")
        axes.set_xlabel("decoded tokens per second")
        axes.set_ylabel("test perplexity (log scale)")
        axes.legend()
    write_csv(folder, "pareto", table)
    return True


def draw_perplexity(data: Comparison, folder: Path) -> None:
    """Test perplexity over sparsity, a line per method; lines may leave the picture at the top."""
    columns = sparsities(data)
    table: list[dict[str, Any]] = []
    with figure(folder, "perplexity", size=(9.5, 4.6)) as axes:
        methods = list(dict.fromkeys(row.method for row in data.rows if row.pattern))
        for number, method in enumerate(methods):
            mine = {row.pattern: row for row in data.rows if row.method == method}
            places = [place for place, one in enumerate(columns) if one in mine]
            values = [data.perplexity(mine[columns[place]]).value for place in places]
            searched = next(iter(mine.values())).base.startswith("searched")
            style = "o-" if number < len(COLOURS) else "s--"
            axes.plot(
                places, values, style, color=COLOURS[number % len(COLOURS)], label=method,
                markersize=5, linewidth=2.4 if searched else 1.2,
            )  # fmt: skip
            table += [
                {"model": method, "sparsity": columns[p], "test_perplexity": v}
                for p, v in zip(places, values, strict=True)
            ]
        dense = next((row for row in data.rows if not row.pattern), None)
        if dense is not None:
            least = data.perplexity(dense).value
            most = max(row["test_perplexity"] for row in table)
            axes.axhline(least, color="#5b6675", linestyle=":", linewidth=1.2, label=dense.method)
            axes.set_ylim(0.85 * least, min(1.2 * most, _HIGHEST * least))
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel("heads and neurons removed")
        axes.set_ylabel("test perplexity (log scale)")
        axes.figure.legend(loc="outside center right", fontsize=8)
    write_csv(folder, "perplexity", table)
