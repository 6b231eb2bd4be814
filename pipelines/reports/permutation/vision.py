"""A report on orders of channels in a small vision transformer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from effllm.modules.evaluation.intervals import INTERVALS, Interval
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.reports.models.comparison import Row
from effllm.pipelines.reports.models.subjects import Subject
from effllm.pipelines.reports.page import Table, Verdict
from effllm.pipelines.reports.paired import Paired
from effllm.pipelines.reports.permutation.names import LEARNT, SEARCHES, describe_all
from effllm.pipelines.reports.permutation.tables import finding_time, found_by
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.stage import Findings, ReportStage
from effllm.pipelines.reports.table import Column, make_table
from effllm.pipelines.reports.verdicts import judge
from effllm.pipelines.reports.words import show

JUDGED = "One trained classifier and one draw of calibration pictures."


@dataclass(frozen=True, kw_only=True)
class ReportPermutationVision(ReportStage):
    """Orders on a classifier of digits."""

    TITLE: ClassVar[str] = "An order of channels in a vision transformer"
    QUESTION: ClassVar[str] = "Does an order of channels help a vision transformer under N:M masks?"
    ARXIV: ClassVar[str] = "2601.22980"

    def find(self, results: Results, figures: Path) -> Findings:
        """Accuracy of each order, and its change from no order."""
        del figures
        study = Study.of(results, self.resamples)
        pictures = len(study.test.arms[study.dense.subject.label])
        return Findings(
            subject=f"A ViT trained here on scikit-learn's digits, {pictures} test pictures",
            answer=answer(study),
            main=[main_table(study)],
            rows=[result_row(study, row, pictures) for row in study.rows],
            verdicts={"What an order adds": verdicts(study)},
            judged=JUDGED,
            conditions=["model = a ViT of 64 channels on 8 x 8 digits, paper ViT-B/16 on ImageNet"],
        )


@dataclass(frozen=True)
class Study:
    """Every model, and which pictures it took for what they are.

    Attributes:
        results: of the run.
        rows: models in the order of tables.
        test: right or wrong on test pictures, by the label of the checkpoint.
        heldout: the same on held-out pictures.
    """

    results: Results
    rows: list[Row]
    test: Paired
    heldout: Paired

    @staticmethod
    def of(results: Results, resamples: int) -> Study:
        """Read what was measured."""
        measured = {
            str(one.subject["checkpoint"]): one
            for one in results.of(Predictions)
            if one.manifest["stage"] == "classify"
        }
        subjects = [Subject(label, one.subject["history"][1:]) for label, one in measured.items()]
        sets = {
            name: Paired(
                {
                    label: [row for row in one.rows() if row["set"] == name]
                    for label, one in measured.items()
                },
                resamples,
            )
            for name in ("test", "heldout")
        }
        rows = sorted(describe_all(subjects), key=lambda row: row.pattern)
        return Study(results, rows, sets["test"], sets["heldout"])

    @property
    def dense(self) -> Row:
        """The classifier as it was trained."""
        return self.rows[0]

    def patterns(self) -> list[str]:
        """Of the pruned models."""
        return list(dict.fromkeys(row.pattern for row in self.rows if row.pattern))

    def find(self, pattern: str, variant: str) -> Row | None:
        """The model of a pattern and an order, such as `gather/swaps`."""
        wanted = (pattern, variant)
        return next((row for row in self.rows if (row.pattern, row.variant) == wanted), None)

    def points(self, row: Row, other: Row) -> Interval:
        """Change of test accuracy from another model, in points."""
        labels = row.subject.label, other.subject.label
        return self.test.change(*labels, "correct", lambda means: 100 * means)


def main_table(study: Study) -> Table:
    """Every model: accuracy, change from no order, worth of the order."""

    def against(row: Row) -> Interval | None:
        plain = study.find(row.pattern, "unchanged")
        return study.points(row, plain) if plain is not None and plain is not row else None

    def accuracy(row: Row) -> Interval:
        return study.test.mean(row.subject.label, "correct")

    def metric(row: Row, key: str) -> float | None:
        order = found_by(row, study.results)
        return float(order.manifest["metrics"][key]) if order is not None else None

    def time(row: Row) -> str | None:
        order = found_by(row, study.results)
        searched = order is not None and row.variant != "unchanged"
        return finding_time(order, study.results) if order and searched else None

    return make_table(
        study.rows,
        Column("Model", lambda row: row.method),
        Column("Pattern", lambda row: row.pattern),
        Column("Right, %", accuracy, ".1%"),
        Column("vs no order, points", against, "+"),
        Column(
            "Held-out, %", lambda row: study.heldout.mean(row.subject.label, "correct").value, ".1%"
        ),
        Column("Efficacy, %", lambda row: metric(row, "mean_efficacy"), ".1%"),
        Column("Held-out error", lambda row: metric(row, "mean_heldout_error"), ".4f"),
        Column("To find it", time),
        note=f"{INTERVALS}; over test pictures. vs no order: paired, under the same pattern. "
        "Efficacy and held-out error: means over sites, as in the report of the language model.",
    )


def result_row(study: Study, row: Row, pictures: int) -> ResultRow:
    """Accuracy of a model."""
    return ResultRow(
        paper="permutation_vision",
        method=row.variant or row.base,
        title=row.method,
        pattern=row.pattern,
        seed=study.results.first("train_classifier").manifest["seed"],
        artifact=row.subject.label,
        figures={"accuracy": study.test.mean(row.subject.label, "correct")},
        n={"accuracy": pictures},
    )


def _best(study: Study, pattern: str, kinds: dict[str, str]) -> Row | None:
    """By held-out pictures."""
    found = [row for kind in kinds if (row := study.find(pattern, f"gather/{kind}")) is not None]

    def right(row: Row) -> float:
        return study.heldout.mean(row.subject.label, "correct").value

    return max(found, key=right, default=None)


def answer(study: Study) -> str:
    """What the best order adds under each pattern."""
    told = []
    for pattern in study.patterns():
        best, plain = _best(study, pattern, SEARCHES | LEARNT), study.find(pattern, "unchanged")
        if best is not None and plain is not None:
            before, after = (
                100 * study.test.mean(row.subject.label, "correct").value for row in (plain, best)
            )
            told.append(
                f"{pattern}: {before:.1f} % right without an order, {after:.1f} % with "
                f"“{best.method}” ({show(study.points(best, plain), '+')} points)"
            )
    dense = study.test.mean(study.dense.subject.label, "correct").value
    return f"{'; '.join(told)}. Dense: {100 * dense:.1f} %." if told else ""


def verdicts(study: Study) -> list[Verdict]:
    """The best order against none, and learning against search, under each pattern."""
    found = []
    for pattern in study.patterns():
        plain, searched, learned = (
            study.find(pattern, "unchanged"),
            _best(study, pattern, SEARCHES),
            _best(study, pattern, LEARNT),
        )
        if plain is None or searched is None or learned is None:
            continue
        change = study.points(searched, plain)
        claim = f"{pattern}: a searched order ({searched.method}) is right more often than none."
        found.append(judge(claim, change, f"{show(change, '+')} points.", above=0))
        change = study.points(learned, searched)
        claim = f"{pattern}: learning improves on the best search."
        found.append(judge(claim, change, f"{show(change, '+')} points.", above=0))
    return found
