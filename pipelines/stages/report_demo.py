"""The page of the first look: three sentences and three pictures."""

from __future__ import annotations

from dataclasses import dataclass

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.report import ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportDemo(ReportStage):
    """Read what pruning, decoding and compression did, and say it."""

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md`, `results.json` and `figures/`."""
        from effllm.pipelines.reports.demo.page import write_page

        results = ctx.input_list("results", Artifact)
        page, rows = write_page(results, self.scale, ctx.workdir / "figures")
        return self.publish(ctx, page, rows)
