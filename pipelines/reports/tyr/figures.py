"""The figures of the Týr report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from effllm.pipelines.artifacts.structural import Allocation, SupernetFiles
from effllm.pipelines.reports.figures import (
    COLOURS,
    figure,
    lines,
    log_ticks,
    whole_ticks,
    write_csv,
)
from effllm.pipelines.reports.models.comparison import Comparison
from effllm.pipelines.reports.page import Figure
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.tyr.names import is_searched
from effllm.pipelines.reports.tyr.speed import Speedup

_PERPLEXITY = ("test_perplexity", "test perplexity (log scale)")
_HIGHEST = 50  # times the dense model's perplexity; what is worse needs no picture


def draw_allocations(data: Comparison, results: Results, folder: Path) -> Figure | None:
    """Removed share of every sub-layer of the searched models."""
    searched = [row for row in data.rows if is_searched(row)]
    if not searched:
        return None
    nets = results.of(SupernetFiles)
    units = {layer.name: layer.units for net in nets for layer in net.open().layers}
    table = []
    with figure(folder, "allocation", size=(8.5, 1.1 + 0.9 * len(searched))) as axes:
        lines, labels = [], []
        for row in searched:
            removed = row.subject.history[-1]["removed"]
            for kind, title in (("attention", "heads"), ("ffn", "neurons")):
                names = sorted(name for name in removed if name.endswith(kind))
                shares = [removed[name] / units[name] for name in names]
                lines.append(shares)
                labels.append(f"{row.method.removeprefix('Týr, ')}, {row.pattern}: {title}")
                table += [
                    {"model": row.method, "sparsity": row.pattern, "sublayer": name, "removed": one}
                    for name, one in zip(names, shares, strict=True)
                ]
        picture = axes.imshow(np.array(lines), aspect="auto", vmin=0, vmax=1, cmap="viridis")
        axes.set_yticks(range(len(labels)), labels, fontsize=9)
        whole_ticks(axes.xaxis)
        axes.set_xlabel("decoder block")
        axes.grid(False)
        axes.figure.colorbar(picture, ax=axes, label="removed share")
    write_csv(folder, "allocation", table)
    return Figure("allocation", "Share of heads and of neurons removed in each block.")


def draw_fitness(searches: Mapping[str, Allocation], folder: Path) -> Figure | None:
    """Fitness of the parent over generations; a line breaks where the text is drawn anew."""
    histories = {name: search.read_rows("history.jsonl") for name, search in searches.items()}
    keys = ("generation", "text", "parent_fitness", "fitness")
    table = [
        {"search": name, **{key: row[key] for key in keys}}
        for name, history in histories.items()
        for row in history
    ]
    if not table:
        return None
    with figure(folder, "fitness", size=(8.5, 3.4)) as axes:
        for number, (name, history) in enumerate(histories.items()):
            style = "o-" if number < len(COLOURS) else "s--"
            texts = sorted({row["text"] for row in history})
            for text in texts:
                mine = [row for row in history if row["text"] == text]
                steps = [mine[0]["generation"], *(row["generation"] + 1 for row in mine)]
                values = [mine[0]["parent_fitness"], *(row["fitness"] for row in mine)]
                axes.plot(steps, values, style, markersize=3, color=COLOURS[number % len(COLOURS)],
                          label=name if text == texts[0] else None)  # fmt: skip
        axes.set_xlabel("generation")
        whole_ticks(axes.xaxis)
        axes.set_ylabel("KL from dense, nats per token")
        axes.figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    write_csv(folder, "fitness", table)
    return Figure("fitness", "Fitness of the best candidate; lines break where new text was drawn.")


def draw_pareto(data: Comparison, speeds: Sequence[Speedup], folder: Path) -> Figure | None:
    """Test perplexity against measured decoding speed."""
    table = [
        {
            "model": speedup.row.method,
            "sparsity": speedup.row.pattern,
            "tokens_per_second": speedup.tokens_per_second,
            "test_perplexity": data.perplexity(speedup.row).value,
        }
        for speedup in speeds
    ]
    if not table:
        return None
    x = ("tokens_per_second", "decoded tokens per second")
    with lines(folder, "pareto", table, by="model", x=x, y=_PERPLEXITY, size=(8.5, 4.2)) as (axes,):
        for row in table:
            axes.annotate(f" {row['sparsity']}", (row[x[0]], row[_PERPLEXITY[0]]), fontsize=8,
                          color="#5b6675")  # fmt: skip
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
    return Figure(
        "pareto", "Quality against speed, lower right is better; the dense model has no label."
    )


def draw_perplexity(data: Comparison, folder: Path) -> Figure:
    """Test perplexity over sparsity, a line per method; lines may leave the picture at the top."""
    table = [
        {
            "model": row.method,
            "sparsity": row.pattern,
            "test_perplexity": data.perplexity(row).value,
        }
        for row in data.rows
        if row.pattern
    ]
    searched = {row.method for row in data.rows if is_searched(row)}
    x = ("sparsity", "heads and neurons removed")
    with lines(
        folder, "perplexity", table, by="model", x=x, y=_PERPLEXITY, size=(9.5, 4.6),
        style=lambda method: "s-" if method in searched else "o:",
    ) as (axes,):  # fmt: skip
        least = data.perplexity(data.dense).value
        most = max(data.perplexity(row).value for row in data.rows)
        axes.axhline(least, color="#5b6675", linestyle=":", linewidth=1.2, label="Dense")
        axes.set_ylim(0.85 * least, min(1.2 * most, _HIGHEST * least))
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
    return Figure(
        "perplexity",
        "Test perplexity over sparsity, searched models with squares; lines that leave the picture "
        "are in the table.",
    )
