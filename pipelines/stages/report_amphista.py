"""The Amphista report: tokens per pass at equal trees, and what a gain is due to."""

from __future__ import annotations

from dataclasses import dataclass

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.report import ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportAmphista(ReportStage):
    """Read the scores of all arms, and say what they show."""

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md`, `results.json` and `figures/`."""
        from effllm.pipelines.reports.amphista.page import write_page

        results = ctx.input_list("results", Artifact)
        page, rows = write_page(results, self.scale, self.resamples, ctx.workdir / "figures")
        return self.publish(ctx, page, rows)
