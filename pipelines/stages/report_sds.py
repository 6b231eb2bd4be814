"""The SDS report: tables, figures, and a verdict per claim."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.ranges import Seed
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.report import ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportSds(ReportStage):
    """Read every result of the pipeline and say what it shows.

    Args:
        seed: calibration seed of the rows.
    """

    VERSION: ClassVar[int] = 4  # 4: one verdict rule, Student's t below 30 examples

    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md`, `results.json`, and `figures/`."""
        import effllm.pipelines.reports.sds as sds
        import effllm.pipelines.reports.sds_figures as sds_figures
        from effllm.pipelines.reports.comparison import Comparison
        from effllm.pipelines.reports.frame import cost, smoke_warning
        from effllm.pipelines.reports.page import Figure, Heading, Page, Text
        from effllm.pipelines.reports.subjects import gather_subjects
        from effllm.pipelines.reports.verdicts import differing, model_and_texts, shown_at

        results = ctx.input_list("results", Artifact)
        rows = [sds.describe(subject) for subject in gather_subjects(results)]
        differs = differing(model_and_texts(results), sds.PAPER_RUN)
        data = Comparison(sorted(rows, key=sds.order), self.resamples, differs)
        figures = ctx.workdir / "figures"
        model = next(a for a in results if a.manifest["stage"] == "import_model")
        name = model.manifest["sources"]["source"]["name"]
        dense = data.find("dense", "dense")
        assert dense is not None
        page = Page(
            "SDS: sparse-dense-sparse pruning",
            f"{name}, scale {self.scale}, calibration seed {self.seed}. "
            f"Test text {dense.subject.protocols['test']}, "
            f"held-out text {dense.subject.protocols['heldout']} "
            "(name-split-tokens x windows). Every figure was measured by effllm, except under "
            "“Beside the paper”.",
        )
        page.add(*smoke_warning(self.scale))
        page.add(Heading("Perplexity"), sds.main_table(data))
        sds_figures.draw_perplexity(data, figures, sds.MAIN)
        page.add(Figure("perplexity", "Test perplexity at 2:4; filled: SDS."))
        page.add(Heading("What the paper claims, and what these numbers say"))
        page.add(*shown_at(self.scale, sds.verdicts(data)))
        page.add(
            Text(
                "Verdicts rest on 95 % intervals over test documents or items for one calibration "
                "seed. Another calibration draw moves perplexities and their differences, so a "
                f"difference in perplexity counts only where its interval clears "
                f"{sds.SEED_MARGIN:g} %, one in accuracy where it excludes zero; several seeds in "
                "one report: make sds-seeds. Claims of the paper are reproduced only under its "
                "conditions; those that differ here stand beside the outcome. Supported and not "
                "supported without more are about our controls, which the paper does not have."
            )
        )
        page.add(*(Text(line) for line in _selections(results)))
        page.add(Heading("All metrics at 2:4"), sds.detail_table(data, sds.MAIN))
        for pattern in ("4:8", "50%"):
            if any(row.pattern == pattern for row in rows):
                page.add(Heading(f"All metrics at {pattern}"), sds.detail_table(data, pattern))
        if sds_figures.draw_histograms(data, figures, "sparsegpt", sds.MAIN):
            page.add(Heading("Weights of one layer along the way"))
            caption = (
                "SparseGPT, 2:4. In the paper's picture W0 is one lobe, S1 two lobes with a hole, "
                "D three peaks and S3 two softened lobes; compare."
            )
            page.add(Figure("weights", caption))
        if sds_figures.draw_layer_errors(data, figures, "sparsegpt", sds.MAIN):
            page.add(Heading("Error by layer"))
            caption = "Mean relative output error per block on the dense model's held-out inputs; "
            page.add(Figure("layer_errors", caption + "SparseGPT, 2:4."))
        page.add(Heading("Beside the paper"), sds.paper_table())
        page.add(Heading("Cost and provenance"), Text(_settings(results)), cost(results))
        return self.publish(ctx, page, sds.result_rows(data, "sds"))


def _selections(results: list[Artifact]) -> list[str]:
    """What early exit chose, one sentence each."""
    lines = []
    for artifact in results:
        if artifact.manifest["stage"] == "select_checkpoint":
            found = artifact.manifest["metrics"]
            chosen = {"early": "S2 (early exit)", "full": "S3 (adjusted)"}[found["chosen"]]
            lines.append(
                f"Early exit on held-out text, {artifact.manifest['instance']}: {chosen}; mean "
                f"loss S2 {found['heldout_nll_early']:.3f}, S3 {found['heldout_nll_full']:.3f}."
            )
    return lines


def _settings(results: list[Artifact]) -> str:
    """Solver settings and calibration windows, as the manifests have them."""
    parts = []
    for stage, title in (("redense", "Step 2"), ("adjust", "Step 3 and controls")):
        solvers = [a.manifest["config"]["solver"] for a in results if a.manifest["stage"] == stage]
        shown = {
            ", ".join(f"{k} {v}" for k, v in solver.items() if k != "_target_")
            for solver in solvers
        }
        parts += [f"{title}: {one}." for one in sorted(shown)]
    protocols = {
        str(a.manifest["metrics"]["protocol"])
        for a in results
        if a.manifest["stage"] == "make_windows"
    }
    return " ".join([*parts, f"Windows: {', '.join(sorted(protocols))}."])
