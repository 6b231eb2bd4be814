"""The CoSpec report: right answers of every rule, headroom, and what was learned."""

from __future__ import annotations

from dataclasses import dataclass

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.report import ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportCospec(ReportStage):
    """Read the verdicts of all pairs, and say what they show."""

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md`, `results.json` and `figures/`."""
        from effllm.pipelines.reports.cospec import page, tables
        from effllm.pipelines.reports.cospec.study import gather

        results = ctx.input_list("results", Artifact)
        studies = gather(results, self.resamples)
        built = page.build(studies, results, self.scale, ctx.workdir / "figures")
        return self.publish(ctx, built, tables.result_rows(studies))
