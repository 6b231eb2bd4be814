"""Tables of the Týr reports, and what its searches took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from effllm.pipelines.artifacts.structural import Allocation, SupernetFiles
from effllm.pipelines.reports.models.comparison import Comparison, Row
from effllm.pipelines.reports.models.tables import task_columns
from effllm.pipelines.reports.page import Table
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.table import Column, make_table
from effllm.pipelines.reports.tyr.names import by_method
from effllm.pipelines.reports.tyr.speed import Speedup

REMOVED_ALIKE = (
    " All methods prune on the same text and remove as many heads and neurons as each other, "
    "ShortGPT as many whole blocks as come nearest in parameters, a search within parameters, "
    "memory or latency what that allows; parameters are counted in the tables of each share."
)


def detail_table(data: Comparison, sparsity: str) -> Table:
    """All metrics at one sparsity."""
    rows = by_method([row for row in data.rows if row.pattern in ("", sparsity)])
    best = data.find("searched", pattern=sparsity)
    dense = data.dense

    def size(row: Row, name: str, scale: float = 1e-6) -> float | None:
        return scale * row.subject.sizes[name] if row.subject.sizes else None

    def share(row: Row) -> float | None:
        counted = row.subject.sizes and dense.subject.sizes
        return row.subject.sizes["parameters"] / counted["parameters"] if counted else None

    return make_table(
        rows,
        Column("Method", lambda row: row.method),
        Column("Test ppl", data.perplexity, best=min),
        Column(
            "vs searched, %",
            lambda row: data.relative(row, best) if best and row is not best else None,
            "+",
        ),
        Column("Held-out ppl", lambda row: data.perplexity(row, "heldout"), best=min),
        Column(
            "KL from dense",
            lambda row: (
                data.divergence(row) if "kl" in row.subject.examples and row is not dense else None
            ),
            ".3f",
            best=min,
        ),
        *task_columns(data, rows),
        Column("Parameters, M", lambda row: size(row, "parameters")),
        Column("of dense, %", share, ".1%"),
        Column(
            "Cache, B/token",
            lambda row: (
                f"{row.subject.sizes['cache_bytes_per_token']:,}" if row.subject.sizes else None
            ),
        ),
        Column("File, MB", lambda row: size(row, "weight_file_bytes")),
        Column("Time", lambda row: row.seconds if row is not dense else None),
        note="vs searched: paired relative change of test perplexity; positive is worse than the "
        "searched model. KL: nats per token on test windows over the dense model's likeliest "
        "tokens and one bucket for all others, a lower bound of the whole. The continuation "
        "task has four choices: guessing is right 25 % of the time. Intervals of both tasks are "
        "over items, not documents. Parameters and cache are counted in the loaded model. File: as "
        "stored; the dense model may be stored in a wider dtype than those made of it. Time: all "
        "stages that made the model, without import and evaluation.",
        ranked=lambda row: row is not dense,
    )


def result_rows(data: Comparison, speeds: Sequence[Speedup]) -> list[ResultRow]:
    """Rows of `results.json`, with sizes and speeds."""
    by_label = {one.row.subject.label: one.figures for one in speeds}
    return [
        data.result_row(row, "tyr", {**row.subject.sizes, **by_label.get(row.subject.label, {})})
        for row in data.rows
    ]


def searches(rows: Iterable[Row], results: Results) -> dict[str, Allocation]:
    """Searches by the row that each led to, in the order of the rows."""
    made = {result.label: result for result in results}
    return {
        f"{row.method}, {row.pattern}": found
        for row in rows
        if row.subject.label in made
        for label in made[row.subject.label].manifest["inputs"].get("allocation", [])
        if isinstance(found := made.get(label), Allocation)
    }


def effort_table(searched: dict[str, Allocation]) -> Table | None:
    """What the searches took; None without any."""
    if not searched:
        return None

    def metric(name: str, key: str) -> float | None:
        return searched[name].manifest["metrics"].get(key)

    return make_table(
        searched,
        Column("Search", lambda name: name),
        Column("generations", lambda name: metric(name, "generations"), ".0f"),
        Column("with a better allocation", lambda name: metric(name, "improvements"), ".0f"),
        Column("s", lambda name: searched[name].manifest["timing"]["seconds"], ".0f"),
        Column(
            "times fewer block evaluations",
            lambda name: metric(name, "fewer_block_evaluations"),
            ".2f",
        ),
        Column("by late starts alone", lambda name: metric(name, "fewer_by_late_starts"), ".2f"),
        note="Fewer than full passes for every fitness value that was asked for; by late starts "
        "alone: without counting values known from before.",
    )


def largest(results: Results) -> str:
    """Bytes of the largest supernet; empty without any."""
    sizes = [
        sum(entry["bytes"] for entry in net.manifest["outputs"].values())
        for net in results.of(SupernetFiles)
    ]
    return f"The largest supernet takes {max(sizes) / 1e9:.2f} GB." if sizes else ""
