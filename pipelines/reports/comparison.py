"""Models side by side: rows, paired comparisons with intervals, and figures as text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from effllm.modules.errors import DataError
from effllm.modules.evaluation.intervals import Interval, Values, estimate
from effllm.pipelines.reports.subjects import Subject


@dataclass(frozen=True)
class Row:
    """One model of the report.

    Attributes:
        subject: what was measured.
        base: kind of method, or `dense`; each paper's `describe` names its own.
        variant: what tells rows of the same kind and pattern apart.
        pattern: what was removed, such as `2:4` or `50 %`; empty for dense.
        method: name in tables.
    """

    subject: Subject
    base: str
    variant: str
    pattern: str
    method: str


@dataclass(frozen=True)
class Comparison:
    """Rows, and how they are compared.

    Attributes:
        rows: the models.
        resamples: bootstrap draws behind each interval.
        conditions: of the run that differ from the paper's.
    """

    rows: list[Row]
    resamples: int
    conditions: tuple[str, ...] = ()

    def find(self, base: str, variant: str, pattern: str = "") -> Row | None:
        """The one row with these properties, or None; the dense model has no pattern."""
        wanted = (base, variant, "" if base == "dense" else pattern)
        return next((r for r in self.rows if (r.base, r.variant, r.pattern) == wanted), None)

    def perplexity(self, row: Row, role: str = "test") -> Interval:
        """Perplexity with its interval over documents."""
        return self._over_documents(row, row.subject.examples[role], role, np.exp)

    def relative(self, row: Row, other: Row, role: str = "test") -> Interval:
        """Paired relative change of perplexity in percent; negative is better.

        Raises:
            DataError: if the two were measured on different windows.
        """
        facts = [
            (one.subject.protocols.get(role), one.subject.documents.get(role))
            for one in (row, other)
        ]
        if facts[0] != facts[1]:
            raise DataError(
                f"report: {row.subject.label} and {other.subject.label} were measured on different "
                f"{role} windows ({facts[0][0]}, {facts[1][0]}); measure both on the same"
            )
        difference = row.subject.examples[role] - other.subject.examples[role]
        return self._over_documents(row, difference, role, lambda m: 100 * (np.exp(m) - 1))

    def divergence(self, row: Row) -> Interval:
        """KL from the dense model on test windows with its interval over documents."""
        return self._over_documents(row, row.subject.examples["kl"], "kl", lambda mean: mean)

    def _over_documents(
        self, row: Row, values: Values, role: str, transform: Callable[[Values], Values]
    ) -> Interval:
        documents: list[str] | None = row.subject.documents.get(role)
        if documents and len(set(documents)) == 1:
            documents = None  # of one document alone there is no other draw than its windows
        return estimate(values, clusters=documents, transform=transform, resamples=self.resamples)

    def counted(self, role: str) -> str:
        """How many windows of how many documents the figures of a set rest on."""
        documents = self.rows[0].subject.documents[role]
        if len(set(documents)) == 1:
            return f"{len(documents)} windows of one document, drawn one by one"
        return f"{len(documents)} windows of {len(set(documents))} documents"

    def accuracy(self, row: Row, task: str) -> Interval:
        """Accuracy in percent with its interval over items, whatever article they are from."""
        correct = 100 * row.subject.examples[task]
        return estimate(correct, bounds=(0, 100), resamples=self.resamples)

    def mean_accuracy_difference(self, row: Row, other: Row) -> Interval:
        """Paired difference of the mean accuracy over tasks, in points; positive is better."""
        tasks = [task for task in row.subject.tasks if task in other.subject.tasks]
        arms = [row.subject.examples[t] - other.subject.examples[t] for t in tasks]
        if len({len(arm) for arm in arms}) == 1:
            return estimate(100 * np.mean(arms, axis=0), resamples=self.resamples)
        draws = [estimate(100 * arm, resamples=self.resamples) for arm in arms]
        spread = np.sqrt(sum(((one.high - one.low) / 2) ** 2 for one in draws)) / len(draws)
        mean = float(np.mean([one.value for one in draws]))
        return Interval(mean, mean - spread, mean + spread)


def result_row(
    data: Comparison, row: Row, paper: str, more: Mapping[str, float | None]
) -> dict[str, Any]:
    """One row of `results.json`.

    Args:
        data: how intervals are made.
        row: the model.
        paper: name of the paper.
        more: metrics of this paper alone, without intervals.

    Returns:
        `{paper, method, pattern, seed, metrics, intervals, n, artifact}`; n counts examples.
    """
    subject = row.subject
    measured = {
        f"{role}/{protocol}/ppl": (data.perplexity(row, role), role)
        for role, protocol in subject.protocols.items()
    }
    measured |= {f"{task}/acc": (data.accuracy(row, task), task) for task in subject.tasks}
    if "kl" in subject.examples:
        measured["test/kl"] = data.divergence(row), "kl"
    values = {key: interval.value for key, (interval, _) in measured.items()}
    return {
        "paper": paper,
        "method": row.method,
        "pattern": row.pattern,
        "seed": subject.seed,
        "metrics": {**more, "seconds": subject.seconds, **values},
        "intervals": {key: one.ends for key, (one, _) in measured.items()},
        "n": {key: len(subject.examples[name]) for key, (_, name) in measured.items()},
        "artifact": subject.label,
    }


def number(value: float) -> str:
    """Four figures at most, never in exponents below a million."""
    if not np.isfinite(value) or value >= 1e6:
        return f"{value:.2e}"
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def with_interval(interval: Interval, digits: int | None = None) -> str:
    """`34.2 [33.1, 35.6]`; the value alone without an interval."""
    return interval.text(number if digits is None else lambda v: f"{v:.{digits}f}")


def signed(interval: Interval) -> str:
    """`-9.1 [-10.2, -8.0]`; large figures as `+36,168` and `+1.1e+06`."""

    def show(value: float) -> str:
        if abs(value) >= 1e6:
            return f"{value:+.1e}"
        return f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.1f}"

    return interval.text(show)


def seconds(row: Row) -> str:
    """Time that a model took to make; a lower bound if a stage was interrupted on the way."""
    bound = "at least " if row.subject.resumed else ""
    return f"{bound}{row.subject.seconds:.0f} s"
