"""Tables of the permutation report."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effllm.modules.evaluation.intervals import INTERVALS
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.reports.comparison import (
    Comparison,
    Row,
    number,
    result_row,
    signed,
    with_interval,
)
from effllm.pipelines.reports.page import Table
from effllm.pipelines.reports.permutation.names import order
from effllm.pipelines.reports.subjects import ancestors

_FINDING = frozenset(
    {"search_permutation", "improve_permutation", "learn_permutation", "learn_permutation_jointly"}
)


def found_by(row: Row, results: list[Artifact]) -> Permutation | None:
    """The permutation that a model was pruned along or that was folded into it."""
    known = {artifact.label: artifact for artifact in results}
    behind = ancestors(row.subject.label, {k: a.manifest for k, a in known.items()})
    used = {str(one["inputs"]["permutation"]) for one in behind if "permutation" in one["inputs"]}
    return next((a for a in results if isinstance(a, Permutation) and a.label in used), None)


def finding_seconds(permutation: Permutation, results: list[Artifact]) -> tuple[float, bool]:
    """Time of the searches and the learning that made a permutation, and whether it is a bound.

    Of an interrupted stage the last attempt alone counts, so that its time is a lower bound.
    """
    manifests = {artifact.label: artifact.manifest for artifact in results}
    timings = [
        one["timing"] for one in ancestors(permutation.label, manifests) if one["stage"] in _FINDING
    ]
    seconds = sum(float(one["seconds"]) for one in timings)
    return seconds, any(one["resumed"] for one in timings)


def finding_time(permutation: Permutation, results: list[Artifact]) -> str:
    """`594 s`, or `at least 1270 s`."""
    seconds, bound = finding_seconds(permutation, results)
    return f"{'at least ' * bound}{seconds:.0f} s"


def main_table(data: Comparison, results: list[Artifact]) -> Table:
    """Every order: perplexity, change from no order, errors of the layers, time to find it."""
    rows = sorted(data.rows, key=order)
    tasks = list(dict.fromkeys(task for row in rows for task in row.subject.tasks))
    body: list[list[str]] = []
    strong = set()
    for row in rows:
        plain = data.find(row.base, "unchanged", row.pattern)
        cells = [row.method, with_interval(data.perplexity(row))]
        against = plain is not None and plain is not row
        cells.append(signed(data.relative(row, plain)) if against and plain else "")
        cells.append(number(data.perplexity(row, "heldout").value))
        permutation = found_by(row, results)
        if permutation is None:
            cells += ["", "", ""]
        else:
            facts = permutation.manifest["metrics"]
            cells += [
                f"{100 * facts['mean_efficacy']:.1f}",
                f"{facts['mean_heldout_error']:.4f}",
                "" if row is plain else finding_time(permutation, results),
            ]
        for task in tasks:
            known = task in row.subject.examples
            cells.append(with_interval(data.accuracy(row, task), 1) if known else "")
        if row.variant.endswith(("/learned", "/jointly")):
            strong.add(len(body))
        body.append(cells)
    return Table(
        ["Model", "Test ppl", "vs no order, %", "Held-out ppl", "Efficacy, %", "Held-out error",
         "To find it", *(f"{task.split('_', 1)[-1]}, %" for task in tasks)],
        body,
        note=f"{INTERVALS}; over documents ({data.counted('test')}). vs no order: paired relative "
        "change of test perplexity from the same pruner without a new order. Efficacy: gain in "
        "retained score as a share of what free rows would gain. Held-out error: relative output "
        "error on the dense model's held-out inputs, mean over sites. To find it: all searches and "
        "learning behind an order, with the measurement of its held-out error; of a stage that was "
        "interrupted the last attempt alone counts. Rows without “free” or “folded in” gather "
        "channels while the model runs; “free” orders fold into the weights.",
        strong=frozenset(strong),
    )  # fmt: skip


def paper_tables() -> list[Table]:
    """The paper's own figures, as data."""
    with Path(__file__).with_name("paper.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tables = []
    for source in dict.fromkeys(row["source"] for row in rows):
        mine = [row for row in rows if row["source"] == source]
        tables.append(
            Table(
                ["The paper's figures (not comparable)", "Pattern", "Metric", "Value"],
                [[f"{r['model']}, {r['method']}", r["pattern"], r["metric"], r["value"]]
                 for r in mine],
                note=f"{source}. Another model, text and context than ours: read directions, not "
                "values.",
            )
        )  # fmt: skip
    return tables


def result_rows(data: Comparison, results: list[Artifact]) -> list[dict[str, Any]]:
    """Rows of `results.json`."""
    found = []
    for row in sorted(data.rows, key=order):
        permutation = found_by(row, results)
        more: Mapping[str, float | None] = {"layer_error": row.subject.layer_error}
        if permutation is not None:
            facts = permutation.manifest["metrics"]
            more = {
                **more,
                **{key: facts[key] for key in ("mean_efficacy", "mean_heldout_error")},
                "finding_seconds": finding_seconds(permutation, results)[0],
            }
        found.append(result_row(data, row, "permutation", more))
    return found
