"""The SDS reports: the paper itself, the search for a setting, and calibration seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from effllm.modules.ranges import Seed
from effllm.pipelines.reports.models.comparison import Comparison
from effllm.pipelines.reports.models.seeds import seeds_table
from effllm.pipelines.reports.models.tables import described_run, perplexity_table
from effllm.pipelines.reports.page import Text
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.sds import claims, studies, tables
from effllm.pipelines.reports.sds.figures import draw_histograms, draw_layer_errors, draw_perplexity
from effllm.pipelines.reports.sds.names import BASES, MAIN, PATTERNS, describe_all
from effllm.pipelines.reports.stage import Findings, ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportSds(ReportStage):
    """Read every result of the pipeline and say what it shows.

    Args:
        seed: calibration seed of the rows.
    """

    VERSION: ClassVar[int] = 6  # 6: rows name scale, model and texts
    TITLE: ClassVar[str] = "SDS: sparse-dense-sparse pruning"
    QUESTION: ClassVar[str] = (
        "Is a model that was pruned, made dense again and pruned again better than one pruned "
        "once, and than one refitted for as long?"
    )
    ARXIV: ClassVar[str] = "2408.10473"

    seed: Seed

    def find(self, results: Results, figures: Path) -> Findings:
        """All metrics of every pattern, verdicts at 2:4, and what the method does to weights."""
        data = Comparison.of(results, describe_all, claims.PAPER_RUN, self.resamples)
        patterns = [one for one in PATTERNS if any(row.pattern == one for row in data.rows)]
        return Findings(
            subject=described_run(data, results, self.seed),
            answer=claims.answer(data),
            main=[tables.detail_table(data, MAIN), draw_perplexity(data, figures, MAIN)],
            rows=tables.result_rows(data),
            verdicts=claims.verdicts(data),
            judged=claims.JUDGED,
            conditions=data.conditions,
            sections={
                "Early exit": tables.selections(results),
                "Perplexity in several patterns": [perplexity_table(data, patterns)],
                **{
                    f"All metrics at {pattern}": [tables.detail_table(data, pattern)]
                    for pattern in reversed(patterns)
                    if pattern != MAIN
                },
                "Weights of one layer along the way": [
                    draw_histograms(data, figures, "sparsegpt", MAIN)
                ],
                "Error by layer": [draw_layer_errors(data, figures, "sparsegpt", MAIN)],
            },
            provenance=tables.settings(results),
        )


@dataclass(frozen=True, kw_only=True)
class ReportSdsSearch(ReportStage):
    """Which setting of the re-dense step held-out text prefers, and what it does on test text."""

    VERSION: ClassVar[int] = 4  # 4: rows name scale, model and texts
    TITLE: ClassVar[str] = "SDS: the search for a setting of the re-dense step"
    QUESTION: ClassVar[str] = (
        "Which setting of the re-dense step does held-out text prefer, and does it then beat "
        "refitting without that step?"
    )
    ARXIV: ClassVar[str] = "2408.10473"

    def find(self, results: Results, figures: Path) -> Findings:
        """A table for each base."""
        data = Comparison.of(results, describe_all, claims.PAPER_RUN, self.resamples)
        bases = [base for base in BASES if any(row.base == base for row in data.rows)]
        return Findings(
            subject="2:4, one calibration seed; settings are ranked on held-out text, test text is "
            "shown for the chosen one alone",
            answer=" ".join(studies.chosen_on_test(data, base) for base in bases),
            main=[studies.search_table(data, base) for base in bases],
            rows=tables.result_rows(data),
        )


@dataclass(frozen=True, kw_only=True)
class ReportSdsSeeds(ReportStage):
    """SDS and its controls over several calibration seeds."""

    VERSION: ClassVar[int] = 4  # 4: rows name scale, model and texts
    TITLE: ClassVar[str] = "SDS: calibration seeds"
    QUESTION: ClassVar[str] = (
        "Do the differences of SDS to one-shot pruning and to its controls hold for other "
        "calibration texts?"
    )
    ARXIV: ClassVar[str] = "2408.10473"

    def find(self, results: Results, figures: Path) -> Findings:
        """Perplexity by seed."""
        data = Comparison.of(results, describe_all, claims.PAPER_RUN, self.resamples)
        return Findings(
            subject="2:4; the same settings, controls and test windows, each seed draws its own "
            "calibration windows",
            answer=studies.seeds_answer(data),
            main=[seeds_table(data, data.rows), Text(studies.pooled_spread(data))],
            rows=tables.result_rows(data),
            verdicts=studies.seeds_verdicts(data),
            conditions=data.conditions,
        )
