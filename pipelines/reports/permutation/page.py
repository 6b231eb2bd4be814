"""The permutation report: is a learned order of channels better than a searched one?"""

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.ranges import Seed
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.report import ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportPermutation(ReportStage):
    """Read every result of the pipeline and say what it shows.

    Args:
        seed: calibration seed of the rows.
    """

    VERSION: ClassVar[int] = 1

    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md`, `results.json`, and `figures/`."""
        import effllm.pipelines.reports.permutation.claims as claims
        import effllm.pipelines.reports.permutation.figures as figures
        import effllm.pipelines.reports.permutation.tables as tables
        from effllm.pipelines.reports.comparison import Comparison
        from effllm.pipelines.reports.frame import cost, smoke_warning
        from effllm.pipelines.reports.page import Figure, Heading, Page, Text
        from effllm.pipelines.reports.permutation.names import describe, order
        from effllm.pipelines.reports.sds import SEED_MARGIN
        from effllm.pipelines.reports.subjects import gather_subjects
        from effllm.pipelines.reports.verdicts import differing, model_and_texts, shown_at

        results = ctx.input_list("results", Artifact)
        rows = [describe(subject) for subject in gather_subjects(results)]
        differs = differing(model_and_texts(results), claims.PAPER_RUN)
        data = Comparison(sorted(rows, key=order), self.resamples, differs)
        folder = ctx.workdir / "figures"
        model = next(a for a in results if a.manifest["stage"] == "import_model")
        dense = data.find("dense", "dense")
        assert dense is not None
        page = Page(
            "Learnable permutation for N:M sparsity",
            f"{model.manifest['sources']['source']['name']}, scale {self.scale}, calibration seed "
            f"{self.seed}. Test text {dense.subject.protocols['test']}, held-out text "
            f"{dense.subject.protocols['heldout']} (name-split-tokens x windows). Every figure was "
            "measured by effllm, except under “Beside the paper”.",
        )
        page.add(*smoke_warning(self.scale))
        page.add(Heading("Is a learned order of channels better than a searched one?"))
        if self.scale != "smoke":
            page.add(Text(claims.answer(data)))
        page.add(tables.main_table(data, results))
        page.add(Heading("Verdicts"), *shown_at(self.scale, claims.verdicts(data, results)))
        page.add(
            Text(
                "Verdicts rest on 95 % intervals over test documents for one calibration seed; a "
                f"difference counts only where its interval clears {SEED_MARGIN:g} %, which "
                "covers another calibration draw as measured for SDS. Scores are those of the "
                "dense model, measured once, as in the paper; “inputs measured again” is Wanda as "
                "its authors run it, on the inputs of the blocks that are pruned already, and so "
                "is SparseGPT."
            )
        )
        if figures.draw_errors(data, results, folder, claims.MAIN):
            page.add(Heading("Where orders help"))
            page.add(Figure("errors", "Held-out error of the layers after Wanda, by what reads."))
            figures.draw_blocks(data, results, folder, claims.MAIN)
            page.add(Figure("blocks", "The same by decoder block, mean over its sites."))
        if figures.draw_learning(data, results, folder, claims.MAIN):
            page.add(Heading("Learning through the whole model"))
            page.add(Figure("learning", "Loss on calibration text, step by step."))
        page.add(Heading("Beside the paper"), *tables.paper_tables())
        page.add(Heading("Cost and provenance"), cost(results))
        return self.publish(ctx, page, tables.result_rows(data, results))
