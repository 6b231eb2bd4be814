"""Tables of the permutation report, and how its orders were found."""

from __future__ import annotations

from effllm.modules.evaluation.intervals import INTERVALS, Interval
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.reports.models.comparison import Comparison, Row
from effllm.pipelines.reports.models.tables import task_columns
from effllm.pipelines.reports.page import Table
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.table import Column, make_table

_FINDING = frozenset(
    {
        "search_permutation",
        "improve_permutation",
        "learn_permutation",
        "learn_permutation_jointly",
        "choose_permutation",
    }
)


def found_by(row: Row, results: Results) -> Permutation | None:
    """The permutation that a model was pruned along or that was folded into it."""
    lineage = results.lineage(row.subject.label)
    used = {
        str(made["inputs"]["permutation"]) for made in lineage if "permutation" in made["inputs"]
    }
    return next((one for one in results.of(Permutation) if one.label in used), None)


def finding_seconds(permutation: Permutation, results: Results) -> tuple[float, bool]:
    """Time of the searches and the learning that made a permutation, and whether it is a bound.

    Of an interrupted stage the last attempt alone counts, so that its time is a lower bound.
    """
    lineage = results.lineage(permutation.label)
    timings = [made["timing"] for made in lineage if made["stage"] in _FINDING]
    seconds = sum(float(timing["seconds"]) for timing in timings)
    return seconds, any(timing["resumed"] for timing in timings)


def finding_time(permutation: Permutation, results: Results) -> str:
    """`594 s`, or `at least 1270 s`."""
    seconds, bound = finding_seconds(permutation, results)
    return f"{'at least ' * bound}{seconds:.0f} s"


def main_table(data: Comparison, results: Results) -> Table:
    """Every order: perplexity, change from no order, errors of the layers, time to find it."""
    orders = {row.subject.label: found_by(row, results) for row in data.rows}

    def against(row: Row) -> Interval | None:
        plain = data.find(row.base, "unchanged", row.pattern)
        return data.relative(row, plain) if plain is not None and plain is not row else None

    def metric(row: Row, key: str) -> float | None:
        order = orders[row.subject.label]
        return float(order.manifest["metrics"][key]) if order is not None else None

    def time(row: Row) -> str | None:
        order = orders[row.subject.label]
        return finding_time(order, results) if order and row.variant != "unchanged" else None

    return make_table(
        data.rows,
        Column("Model", lambda row: row.method),
        Column("Test ppl", data.perplexity, best=min),
        Column("vs no order, %", against, "+"),
        Column("Held-out ppl", lambda row: data.perplexity(row, "heldout").value, best=min),
        Column("Efficacy, %", lambda row: metric(row, "mean_efficacy"), ".1%"),
        Column("Held-out error", lambda row: metric(row, "mean_heldout_error"), ".4f", best=min),
        Column("To find it", time),
        *task_columns(data, data.rows),
        note=f"{INTERVALS}; over documents ({data.counted('test')}). vs no order: paired relative "
        "change of test perplexity from the same pruner without a new order. Efficacy: gain in "
        "retained score as a share of what free rows would gain. Held-out error: relative output "
        "error on the dense model's held-out inputs, mean over sites. To find it: all searches and "
        "learning that led to an order, with the measurement of its held-out error; of a stage "
        "that was interrupted the last attempt alone counts. Rows without “free” or “folded in” "
        "gather channels while the model runs; “free” orders fold into the weights.",
        ranked=lambda row: row.base != "dense",
    )


def result_rows(data: Comparison, results: Results) -> list[ResultRow]:
    """Rows of `results.json`."""
    found = []
    for row in data.rows:
        permutation = found_by(row, results)
        more: dict[str, float | None] = {"layer_error": row.subject.layer_error}
        if permutation is not None:
            facts = permutation.manifest["metrics"]
            more |= {key: facts[key] for key in ("mean_efficacy", "mean_heldout_error")}
            more["finding_seconds"] = finding_seconds(permutation, results)[0]
        found.append(data.result_row(row, "permutation", more))
    return found
