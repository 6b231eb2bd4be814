"""The two studies around SDS as reports: the search for a setting, and calibration seeds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.report import ReportStage

if TYPE_CHECKING:
    from effllm.pipelines.reports.comparison import Comparison


@dataclass(frozen=True, kw_only=True)
class ReportSdsSearch(ReportStage):
    """Which setting of the re-dense step held-out text prefers, and what it does on test text."""

    VERSION: ClassVar[int] = 2  # 2: Student's t below 30 examples

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md` and `results.json`."""
        from effllm.pipelines.reports import sds, sds_study
        from effllm.pipelines.reports.page import Heading, Page

        data = _comparison(ctx, self.resamples)
        page = Page(
            "SDS: the search for a setting of the re-dense step",
            f"2:4, scale {self.scale}, one calibration seed. Settings are ranked on held-out text; "
            "test text is shown for the chosen one alone.",
        )
        bases = [base for base in sds.BASES if any(row.base == base for row in data.rows)]
        for base in bases:
            page.add(Heading(sds.BASES[base]), sds_study.search_table(data, base))
            page.add(sds_study.chosen_on_test(data, base))
        self.publish(ctx, page, sds.result_rows(data, "sds"))
        return {"settings": len({sds_study.setting(r) for r in data.rows if r.variant == "sds"})}


@dataclass(frozen=True, kw_only=True)
class ReportSdsSeeds(ReportStage):
    """SDS and its controls over several calibration seeds."""

    VERSION: ClassVar[int] = 2  # 2: one verdict rule, Student's t below 30 examples

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md` and `results.json`."""
        from effllm.pipelines.reports import sds, sds_study
        from effllm.pipelines.reports.page import Heading, Page
        from effllm.pipelines.reports.verdicts import shown_at

        data = _comparison(ctx, self.resamples)
        page = Page(
            "SDS: calibration seeds",
            f"2:4, scale {self.scale}. The same settings, controls and test windows; each seed "
            "draws its own calibration windows.",
        )
        page.add(Heading("Perplexity by seed"), sds_study.seeds_table(data))
        verdicts = sds_study.seeds_verdicts(data)
        page.add(Heading("Verdicts over seeds"), *shown_at(self.scale, verdicts))
        page.add(sds_study.pooled_spread(data))
        return self.publish(ctx, page, sds.result_rows(data, "sds"))


def _comparison(ctx: StageContext, resamples: int) -> "Comparison":
    from effllm.pipelines.reports import sds
    from effllm.pipelines.reports.comparison import Comparison
    from effllm.pipelines.reports.subjects import gather_subjects
    from effllm.pipelines.reports.verdicts import differing, model_and_texts

    results = ctx.input_list("results", Artifact)
    rows = [sds.describe(one) for one in gather_subjects(results)]
    differs = differing(model_and_texts(results), sds.PAPER_RUN)
    return Comparison(sorted(rows, key=sds.order), resamples, differs)
