"""The permutation report: is a learned order of channels better than a searched one?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from effllm.modules.ranges import Seed
from effllm.pipelines.reports.models.comparison import Comparison
from effllm.pipelines.reports.models.tables import described_run
from effllm.pipelines.reports.permutation import claims, tables
from effllm.pipelines.reports.permutation import figures as draw
from effllm.pipelines.reports.permutation.names import describe_all
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.stage import Findings, ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportPermutation(ReportStage):
    """Read every result of the pipeline and say what it shows.

    Args:
        seed: calibration seed of the rows.
    """

    VERSION: ClassVar[int] = 4  # 4: a claim on free orders learned through the model
    TITLE: ClassVar[str] = "Learnable permutation for N:M sparsity"
    QUESTION: ClassVar[str] = "Is a learned order of channels better than a searched one?"
    ARXIV: ClassVar[str] = "2601.22980"

    seed: Seed

    def find(self, results: Results, figures: Path) -> Findings:
        """Every order, where orders help, and how those were learned that were."""
        data = Comparison.of(results, describe_all, claims.PAPER_RUN, self.resamples)
        return Findings(
            subject=described_run(data, results, self.seed),
            answer=claims.answer(data),
            main=[tables.main_table(data, results)],
            rows=tables.result_rows(data, results),
            verdicts=claims.verdicts(data, results),
            judged=claims.JUDGED,
            conditions=data.conditions,
            sections={
                "Where orders help": [
                    draw.draw_errors(data, results, figures, claims.MAIN),
                    draw.draw_blocks(data, results, figures, claims.MAIN),
                    draw.draw_order(data, results, figures, claims.MAIN),
                ],
                "Learning through the whole model": [
                    draw.draw_learning(data, results, figures, claims.MAIN)
                ],
            },
        )
