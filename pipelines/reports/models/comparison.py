"""Models side by side: rows, and paired comparisons with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from effllm.modules.errors import DataError
from effllm.modules.evaluation.intervals import Interval, Values, estimate
from effllm.pipelines.reports.models.subjects import Subject, gather_subjects
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.verdicts import differing, model_and_texts


@dataclass(frozen=True)
class Row:
    """One model of the report.

    Attributes:
        subject: what was measured.
        base: kind of method, or `dense`; each paper's `describe` names its own.
        pattern: what was removed, such as `2:4` or `50 %`; empty for dense.
        method: name in tables.
        variant: what tells rows of the same kind and pattern apart; empty if nothing must.
    """

    subject: Subject
    base: str
    pattern: str
    method: str
    variant: str = ""

    @property
    def seconds(self) -> str:
        """Time that it took to make; a lower bound if a stage was interrupted on the way."""
        bound = "at least " if self.subject.resumed else ""
        return f"{bound}{self.subject.seconds:.0f} s"


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

    @classmethod
    def of(
        cls,
        results: Results,
        describe_all: Callable[[Sequence[Subject]], list[Row]],
        paper_run: Mapping[str, Any],
        resamples: int,
    ) -> Comparison:
        """All measured models of a run.

        Args:
            results: of the run.
            describe_all: names the models, in the order of the report.
            paper_run: model and texts of the paper.
            resamples: bootstrap draws behind each interval.
        """
        rows = describe_all(gather_subjects(results))
        return cls(rows, resamples, differing(model_and_texts(results), paper_run))

    def find(self, base: str, variant: str = "", pattern: str = "") -> Row | None:
        """The one row with these properties, or None; the dense model has no pattern."""
        wanted = (base, variant, "" if base == "dense" else pattern)
        return next((r for r in self.rows if (r.base, r.variant, r.pattern) == wanted), None)

    @property
    def dense(self) -> Row:
        """The model that all others were made of.

        Raises:
            DataError: if it was not measured.
        """
        found = next((row for row in self.rows if (row.base, row.variant) == ("dense", "")), None)
        if found is None:
            raise DataError(
                "report: the dense model was not measured; give it to the stages that measure "
                "(pipeline.measure.each=[base, …])"
            )
        return found

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

    def result_row(self, row: Row, paper: str, more: Mapping[str, float | None]) -> ResultRow:
        """A row of `results.json`.

        Args:
            row: the model.
            paper: whose report it is.
            more: metrics of this paper alone, without intervals.
        """
        subject = row.subject
        measured = {
            f"{role}/{protocol}/ppl": (self.perplexity(row, role), role)
            for role, protocol in subject.protocols.items()
        }
        measured |= {f"{task}/acc": (self.accuracy(row, task), task) for task in subject.tasks}
        if "kl" in subject.examples:
            measured["test/kl"] = self.divergence(row), "kl"
        return ResultRow(
            paper=paper,
            method=row.method,
            title=row.method,
            pattern=row.pattern,
            seed=subject.seed,
            artifact=subject.label,
            figures={
                **more,
                "seconds": subject.seconds,
                **{key: interval for key, (interval, _) in measured.items()},
            },
            n={key: len(subject.examples[name]) for key, (_, name) in measured.items()},
        )


def place(name: str, *names: str) -> int:
    """Place of a name among others, for the order of rows; after all of them if it is not there."""
    return names.index(name) if name in names else len(names)
