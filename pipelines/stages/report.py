"""What the reports of all papers have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.ranges import PositiveInt, Word
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.measured import Report
from effllm.pipelines.files import write_json
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.pipelines.reports.page import Page


@dataclass(frozen=True, kw_only=True)
class ReportStage(Stage):
    """Reads results and writes a page about them.

    Args:
        scale: smoke, cpu or paper; for the title.
        resamples: of the bootstrap.
    """

    INPUTS: ClassVar = {"results": Many(Artifact)}
    OUTPUT: ClassVar = Report

    scale: Word
    resamples: PositiveInt

    def publish(self, ctx: StageContext, page: Page, rows: Sequence[dict[str, Any]]) -> Metrics:
        """Write the page and `results.json`; returns outcome -> verdicts with it."""
        page.write(ctx.workdir)
        write_json(ctx.workdir / "results.json", rows)
        return page.outcomes
