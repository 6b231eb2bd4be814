"""Report on Týr over several seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.report import ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportTyrSeeds(ReportStage):
    """The search, its even level and its nearest rival over seeds of calibration and moves."""

    VERSION: ClassVar[int] = 3  # 3: one verdict rule, Student's t below 30 examples

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md` and `results.json`."""
        from effllm.pipelines.reports import tyr, tyr_seeds
        from effllm.pipelines.reports.comparison import Comparison
        from effllm.pipelines.reports.frame import smoke_warning
        from effllm.pipelines.reports.page import Heading, Page
        from effllm.pipelines.reports.seeds import seeds_table
        from effllm.pipelines.reports.subjects import gather_subjects
        from effllm.pipelines.reports.verdicts import differing, model_and_texts, shown_at

        results = ctx.input_list("results", Artifact)
        differs = differing(model_and_texts(results), tyr.PAPER_RUN)
        data = Comparison(tyr.describe_all(gather_subjects(results)), self.resamples, differs)
        page = Page(
            "Týr-the-Pruner: seeds",
            f"Scale {self.scale}. The same settings and test windows; each seed draws its own "
            "calibration windows, moves, and text to judge on.",
        )
        page.add(*smoke_warning(self.scale))
        verdicts = tyr_seeds.verdicts(data)
        page.add(Heading("Verdicts over seeds"), *shown_at(self.scale, verdicts))
        for sparsity in tyr.sparsities(data):
            mine = tyr_seeds.at(data, sparsity)
            page.add(Heading(f"Perplexity by seed at {sparsity}"))
            for role in ("test", "heldout"):
                page.add(
                    seeds_table(
                        mine, mine.rows, role=role, strong=lambda row: row.base == "searched"
                    )
                )
        return self.publish(ctx, page, tyr.result_rows(data, [], "tyr"))
