"""The Týr reports: the paper itself, and its search over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from effllm.modules.ranges import Seed
from effllm.pipelines.artifacts.measured import Speeds
from effllm.pipelines.reports.models.comparison import Comparison
from effllm.pipelines.reports.models.seeds import seeds_table
from effllm.pipelines.reports.models.tables import described_run, perplexity_table
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.stage import Findings, ReportStage
from effllm.pipelines.reports.tyr import claims, tables
from effllm.pipelines.reports.tyr import figures as draw
from effllm.pipelines.reports.tyr.names import describe_all, sparsities
from effllm.pipelines.reports.tyr.speed import gather_speeds, speed_table


@dataclass(frozen=True, kw_only=True)
class ReportTyr(ReportStage):
    """Read every result of the pipeline and say what it shows.

    Args:
        seed: calibration seed of the rows.
    """

    VERSION: ClassVar[int] = 7  # 7: rows name scale, model and texts
    TITLE: ClassVar[str] = "Týr-the-Pruner: heads and neurons, searched over depth"
    QUESTION: ClassVar[str] = (
        "Does a searched distribution of heads and neurons over depth beat an even one and other "
        "structural pruners, and is the smaller model faster?"
    )
    ARXIV: ClassVar[str] = "2503.09657"

    seed: Seed

    def find(self, results: Results, figures: Path) -> Findings:
        """All metrics at each sparsity, speed, and the searches."""
        data = Comparison.of(results, describe_all, claims.PAPER_RUN, self.resamples)
        timed = results.of(Speeds)
        speeds = gather_speeds(timed, data.rows, self.resamples)
        removed = sparsities(data)
        searched = tables.searches(data.rows, results)
        over = perplexity_table(data, removed, note=tables.REMOVED_ALIKE)
        return Findings(
            subject=described_run(data, results, self.seed),
            answer=claims.answer(data, speeds),
            main=[
                over or tables.detail_table(data, removed[-1]),
                draw.draw_perplexity(data, figures),
            ],
            rows=tables.result_rows(data, speeds),
            verdicts=claims.verdicts(data, speeds),
            judged=claims.JUDGED,
            conditions=data.conditions,
            sections={
                **{
                    f"All metrics at {sparsity}": [tables.detail_table(data, sparsity)]
                    for sparsity in reversed(removed)
                    if over
                },
                "Held-out perplexity": [perplexity_table(data, removed, "heldout")],
                "Speed": [speed_table(speeds, timed), draw.draw_pareto(data, speeds, figures)],
                "Where units were removed": [draw.draw_allocations(data, results, figures)],
                "The search": [draw.draw_fitness(searched, figures), tables.effort_table(searched)],
            },
            provenance=tables.largest(results),
        )


@dataclass(frozen=True, kw_only=True)
class ReportTyrSeeds(ReportStage):
    """The search, its even level and its nearest rival over seeds of calibration and moves."""

    VERSION: ClassVar[int] = 5  # 5: rows name scale, model and texts
    TITLE: ClassVar[str] = "Týr-the-Pruner: seeds"
    QUESTION: ClassVar[str] = (
        "Does the search's gain hold for other calibration windows and other moves?"
    )
    ARXIV: ClassVar[str] = "2503.09657"

    def find(self, results: Results, figures: Path) -> Findings:
        """Perplexity by seed at each sparsity."""
        data = Comparison.of(results, describe_all, claims.PAPER_RUN, self.resamples)
        at = {sparsity: claims.at(data, sparsity) for sparsity in sparsities(data)}
        return Findings(
            subject="The same settings and test windows; each seed draws its own calibration "
            "windows, moves, and text to judge on",
            answer=claims.seeds_answer(data),
            main=[],
            rows=tables.result_rows(data, []),
            verdicts=claims.seeds_verdicts(data),
            conditions=data.conditions,
            sections={
                f"Perplexity by seed at {sparsity}": [
                    seeds_table(mine, mine.rows, role=role) for role in ("test", "heldout")
                ]
                for sparsity, mine in at.items()
            },
        )
