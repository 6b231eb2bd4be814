"""Tables of the SDS report."""

from __future__ import annotations

from effllm.modules.evaluation.intervals import INTERVALS, Interval
from effllm.pipelines.reports.models.comparison import Comparison, Row, place
from effllm.pipelines.reports.models.tables import task_columns
from effllm.pipelines.reports.page import Table, Text
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.sds.names import PATTERNS
from effllm.pipelines.reports.table import Column, make_table


def detail_table(data: Comparison, pattern: str) -> Table | None:
    """All metrics of one pattern; None if no model has it."""
    rows = [row for row in data.rows if row.pattern in ("", pattern)]
    if not any(row.pattern for row in rows):
        return None
    ablated = any(row.variant in ("s_ds", "sds_variant") for row in rows)

    def against(row: Row, variant: str) -> Interval | None:
        other = data.find(row.base, variant, pattern)
        return data.relative(row, other) if other is not None and other is not row else None

    return make_table(
        rows,
        Column("Method", lambda row: row.method),
        Column("Test ppl", data.perplexity, best=min),
        Column("vs one-shot, %", lambda row: against(row, "prune"), "+"),
        Column("vs SDS, %", lambda row: against(row, "sds") if ablated else None, "+"),
        Column("Held-out ppl", lambda row: data.perplexity(row, "heldout").value, best=min),
        *task_columns(data, rows),
        Column("Layer error", lambda row: row.subject.layer_error, ".4f", best=min),
        Column("Time", lambda row: row.seconds),
        note=f"{INTERVALS}; over documents ({data.counted('test')}), in brackets; lower is "
        "better. vs one-shot, vs SDS: paired relative change of test perplexity on the same base. "
        "Layer error: mean relative output error on the dense model's held-out inputs, the same "
        "for all rows. Time: all stages that made the model, without import and evaluation; "
        "where rows below reuse a pruning's Gram matrices, its own time includes gathering them. "
        "Bold: the best model with the pattern.",
        ranked=lambda row: row.pattern == pattern and "redense" not in row.variant,
    )


def result_rows(data: Comparison) -> list[ResultRow]:
    """Rows of `results.json`, by pattern."""
    return [
        data.result_row(row, "sds", {"layer_error": row.subject.layer_error})
        for row in sorted(data.rows, key=lambda row: place(row.pattern, "", *PATTERNS))
    ]


def selections(results: Results) -> list[Text]:
    """What early exit chose, one sentence each."""
    lines = []
    for selected in results.by("select_checkpoint"):
        found = selected.manifest["metrics"]
        chosen = {"early": "S2 (early exit)", "full": "S3 (adjusted)"}[found["chosen"]]
        lines.append(
            Text(
                f"Early exit on held-out text, {selected.manifest['instance']}: {chosen}; mean "
                f"loss S2 {found['heldout_nll_early']:.3f}, S3 {found['heldout_nll_full']:.3f}."
            )
        )
    return lines


def settings(results: Results) -> str:
    """Solver settings and windows, as the manifests have them."""
    parts = []
    for stage, title in (("redense", "Step 2"), ("adjust", "Step 3 and controls")):
        shown = {
            ", ".join(f"{k} {v}" for k, v in solver.items() if k != "_target_")
            for solver in (made.manifest["config"]["solver"] for made in results.by(stage))
        }
        parts += [f"{title}: {line}." for line in sorted(shown)]
    protocols = {str(made.manifest["metrics"]["protocol"]) for made in results.by("make_windows")}
    return " ".join([*parts, f"Windows: {', '.join(sorted(protocols))}."])
