"""Tables that all reports on pruned models have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from effllm.modules.evaluation.intervals import INTERVALS, Interval
from effllm.pipelines.reports.models.comparison import Comparison, Row
from effllm.pipelines.reports.page import Table
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.table import Column, columns, make_table

ROLES = {"heldout": "Held-out", "test": "Test"}


def perplexity_table(
    data: Comparison, patterns: Sequence[str], role: str = "test", note: str = ""
) -> Table | None:
    """Perplexity of every method in every pattern; None for a single pattern.

    Methods that exist for one pattern alone are left out: they are in the table of that pattern.
    """
    by_method: dict[str, dict[str, Row]] = {}
    for row in data.rows:
        by_method.setdefault(row.method, {})[row.pattern] = row
    methods = [name for name, rows in by_method.items() if len(rows) > 1 or "" in rows]
    if len(patterns) < 2 or len(methods) < 2:
        return None

    def perplexity(method: str, pattern: str) -> Interval | None:
        row = by_method[method].get(pattern) or by_method[method].get("")
        return data.perplexity(row, role) if row else None

    return make_table(
        methods,
        Column(f"{ROLES[role]} perplexity", lambda method: method),
        *columns({pattern: pattern for pattern in patterns}, perplexity, best=min),
        note=f"{INTERVALS}; over documents ({data.counted(role)}), in brackets; lower is better. "
        f"Methods that exist for one share alone stand in its own table.{note}",
        ranked=lambda method: "" not in by_method[method],
    )


def task_columns(data: Comparison, rows: Iterable[Row]) -> list[Column]:
    """A column for the accuracy of each task that was run."""
    return columns(
        {task: f"{task.split('_', 1)[-1]}, %" for row in rows for task in row.subject.tasks},
        lambda row, task: data.accuracy(row, task) if task in row.subject.examples else None,
        ".1f",
        max,
    )


def described_run(data: Comparison, results: Results, seed: int) -> str:
    """Model, seed and texts of a run, for the line below the title."""
    protocols = data.dense.subject.protocols
    pruned_on = {
        str(windows.manifest["metrics"]["protocol"])
        for windows in results.by("make_windows")
        if windows.manifest["config"]["split"] == "calibration"
    }
    return (
        f"{results.model}, calibration seed {seed}. Calibration text "
        f"{', '.join(sorted(pruned_on))}, test text {protocols['test']}, held-out text "
        f"{protocols['heldout']} (name-split-tokens x windows)"
    )
