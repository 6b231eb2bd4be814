"""A report on orders and SDS together: the best 2:4 model, and which part of the stack does it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from effllm.modules.evaluation.intervals import INTERVALS, Interval
from effllm.modules.ranges import Seed
from effllm.pipelines.reports.models.comparison import Comparison, Row, place
from effllm.pipelines.reports.models.subjects import Subject
from effllm.pipelines.reports.models.tables import described_run, task_columns
from effllm.pipelines.reports.page import Table, Verdict
from effllm.pipelines.reports.permutation.claims import MAIN, PAPER_RUN
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.sds import names as sds
from effllm.pipelines.reports.sds.claims import SEED_MARGIN
from effllm.pipelines.reports.stage import Findings, ReportStage
from effllm.pipelines.reports.table import Column, make_table
from effllm.pipelines.reports.verdicts import judge
from effllm.pipelines.reports.words import show

_PLAIN = "plain"
_ORDERS = {"free": "Free order", "gathered": "Gathered order"}
_KINDS = {
    "prune": "one-shot SparseGPT",
    "refit": "SparseGPT and one refit",
    "refit_2": "SparseGPT and two refits",
    "refit_3": "SparseGPT and three refits",
    "sds": "SparseGPT and SDS",
}
JUDGED = (
    "One calibration seed: a difference counts only where its interval clears "
    f"{SEED_MARGIN:g} %, which covers another calibration draw as measured for SDS. Free "
    "orders were folded into the dense model before it was pruned, so that their rows are plain "
    "models with 2:4 along neighbours; gathered ones are reordered while the model runs."
)


def describe_all(subjects: Iterable[Subject]) -> list[Row]:
    """What SDS calls each model, with and without an order, side by side."""

    def order(row: Row) -> tuple[int, int]:
        return place(row.variant, "", *_KINDS), place(row.base, "dense", _PLAIN, *_ORDERS)

    return sorted(map(_describe, subjects), key=order)


def _describe(subject: Subject) -> Row:
    steps = [step for step in subject.history if step["stage"] != "fold_permutation"]
    row = sds.describe(replace(subject, history=steps))
    if row.base == "dense":
        return replace(row, subject=subject)
    gathered = any("permutation" in step for step in steps)
    base = "free" if len(steps) < len(subject.history) else "gathered" if gathered else _PLAIN
    method = row.method if base == _PLAIN else f"{_ORDERS[base]}, {row.method}"
    return replace(row, subject=subject, base=base, method=method)


@dataclass(frozen=True, kw_only=True)
class ReportPermutationSds(ReportStage):
    """Orders, SparseGPT and SDS in one pipeline.

    Args:
        seed: calibration seed of the rows.
    """

    VERSION: ClassVar[int] = 3  # 3: says which rows are plain models
    TITLE: ClassVar[str] = "An order of channels, SparseGPT and SDS at 2:4"
    QUESTION: ClassVar[str] = (
        "Is a model whose channels were ordered before SparseGPT and SDS the best 2:4 model, and "
        "which part does the work?"
    )
    ARXIV: ClassVar[str] = "2601.22980"

    seed: Seed

    def find(self, results: Results, figures: Path) -> Findings:
        """Each way to prune with and without an order."""
        del figures
        data = Comparison.of(results, describe_all, PAPER_RUN, self.resamples)
        return Findings(
            subject=described_run(data, results, self.seed),
            answer=answer(data),
            main=[main_table(data)],
            rows=[data.result_row(row, "permutation_sds", {}) for row in data.rows],
            verdicts=verdicts(data),
            judged=JUDGED,
        )


def main_table(data: Comparison) -> Table:
    """Every model beside the same without an order, and both beside one-shot pruning."""

    def against(row: Row, base: str, kind: str) -> Interval | None:
        other = data.find(base, kind, MAIN)
        return data.relative(row, other) if other and other is not row and row.pattern else None

    return make_table(
        data.rows,
        Column("Model", lambda row: row.method),
        Column("Test ppl", data.perplexity, best=min),
        Column(
            "vs no order, %",
            lambda row: against(row, _PLAIN, row.variant) if row.base in _ORDERS else None,
            "+",
        ),
        Column("vs one-shot, %", lambda row: against(row, row.base, "prune"), "+"),
        Column("Held-out ppl", lambda row: data.perplexity(row, "heldout").value, best=min),
        *task_columns(data, data.rows),
        Column("Time", lambda row: row.seconds),
        note=f"{INTERVALS}; over documents ({data.counted('test')}). vs no order: paired relative "
        "change of test perplexity from the same pipeline on the channels as they are; vs "
        "one-shot: from one-shot SparseGPT with the same order. Time: all stages that made the "
        "model, the search of its order among them.",
        ranked=lambda row: bool(row.pattern) and row.variant in _KINDS,
    )


def answer(data: Comparison) -> str:
    """The best 2:4 model by held-out text, and what the order adds to it."""
    pruned = [row for row in data.rows if row.pattern and row.variant in _KINDS]
    ordered = [row for row in pruned if row.base in _ORDERS]
    plain = [row for row in pruned if row.base == _PLAIN]
    if not ordered or not plain:
        return ""
    best, rival = (
        min(rows, key=lambda row: data.perplexity(row, "heldout").value)
        for rows in (ordered, plain)
    )
    change = data.relative(best, rival)
    lead = "Yes" if change.high < -SEED_MARGIN else "Not beyond another calibration draw"
    return (
        f"{lead}: by held-out text the best model with an order is “{best.method}” (test "
        f"perplexity {show(data.perplexity(best).value)}), the best without one “{rival.method}” "
        f"({show(data.perplexity(rival).value)}), a change of {show(change, '+')} %."
    )


def verdicts(data: Comparison) -> dict[str, list[Verdict]]:
    """What the order adds to each way to prune, and what each way adds to the order."""

    def compare(claim: str, row: Row | None, other: Row | None) -> list[Verdict]:
        if row is None or other is None:
            return []
        change = data.relative(row, other)
        evidence = (
            f"Test perplexity {show(change, '+')} % (paired by window). It takes {row.seconds} "
            f"against {other.seconds}."
        )
        return [judge(claim, change, evidence, below=0, margin=SEED_MARGIN)]

    def row(base: str, kind: str) -> Row | None:
        return data.find(base, kind, MAIN)

    order, rest = [], []
    for base, title in _ORDERS.items():
        for kind, name in _KINDS.items():
            order += compare(f"{title}: improves {name}.", row(base, kind), row(_PLAIN, kind))
        for kind in ("refit_3", "sds"):
            claim = f"{title}: {_KINDS[kind]} improves on {_KINDS['prune']}."
            rest += compare(claim, row(base, kind), row(base, "prune"))
        claim = f"{title}: the re-dense step earns its place, SDS beats three refits."
        rest += compare(claim, row(base, "sds"), row(base, "refit_3"))
    return {"What an order adds": order, "What refitting and re-densing add to it": rest}
