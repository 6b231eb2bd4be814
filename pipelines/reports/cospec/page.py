"""The CoSpec report: right answers of every rule, headroom, and what was learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from effllm.pipelines.reports.cospec import claims, tables
from effllm.pipelines.reports.cospec import figures as draw
from effllm.pipelines.reports.cospec.study import gather
from effllm.pipelines.reports.page import Text
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.stage import Findings, ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportCospec(ReportStage):
    """Read the verdicts of all pairs, and say what they show."""

    VERSION: ClassVar[int] = 3  # 3: rows name scale, model and texts
    TITLE: ClassVar[str] = "CoSpec: a learned choice between draft and target"
    QUESTION: ClassVar[str] = (
        "Can a learned choice between a draft's and a target's token be right more often than the "
        "target itself?"
    )
    ARXIV: ClassVar[str] = "2605.24793"

    def find(self, results: Results, figures: Path) -> Findings:
        """Every rule of every pair, headroom, frontiers, policies."""
        studies = gather(results, self.resamples)
        return Findings(
            subject=f"{', '.join(study.name for study in studies)}, greedy",
            answer=claims.answer(studies),
            main=[Text(claims.WHAT_IT_SHOWS)],
            rows=tables.result_rows(studies),
            verdicts=claims.verdicts(studies),
            judged=claims.JUDGED,
            conditions=claims.PAPER_CONDITIONS,
            sections={
                **{f"Every rule on {study.name}": [tables.main_table(study)] for study in studies},
                "Headroom, before any reinforcement": [
                    tables.headroom_table(studies),
                    draw.draw_headroom(studies, figures),
                ],
                "Right answers against predicted speed": [draw.draw_frontier(studies, figures)],
                "Measured speed": [tables.speed_table(studies)],
                "Policies, seed by seed": [
                    tables.seeds_table(studies),
                    draw.draw_learning(studies, figures),
                ],
                "What the policy leans on": [
                    tables.leaning_table(studies),
                    draw.draw_reliability(studies, figures),
                ],
                "Arbitrated problems": tables.texts(studies),
                "Known from the paper, designed here": [tables.known_table()],
            },
        )
