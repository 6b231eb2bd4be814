"""The Týr report: tables, figures, and a verdict per claim."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.ranges import Seed
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.measured import Speeds
from effllm.pipelines.artifacts.structural import Allocation, SupernetFiles
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.report import ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportTyr(ReportStage):
    """Read every result of the pipeline and say what it shows.

    Args:
        seed: calibration seed of the rows.
    """

    VERSION: ClassVar[int] = 5  # 5: one verdict rule, on test text; Student's t below 30 examples

    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md`, `results.json`, and `figures/`."""
        import effllm.pipelines.reports.tyr as tyr
        import effllm.pipelines.reports.tyr_figures as figures
        import effllm.pipelines.reports.tyr_speed as speed
        from effllm.pipelines.reports.comparison import Comparison
        from effllm.pipelines.reports.frame import cost, smoke_warning
        from effllm.pipelines.reports.page import Figure, Heading, Page, Text
        from effllm.pipelines.reports.subjects import gather_subjects
        from effllm.pipelines.reports.verdicts import differing, model_and_texts, shown_at

        results = ctx.input_list("results", Artifact)
        differs = differing(model_and_texts(results), tyr.PAPER_RUN)
        data = Comparison(tyr.describe_all(gather_subjects(results)), self.resamples, differs)
        timed = [one for one in results if isinstance(one, Speeds)]
        speeds = speed.gather_speeds(timed, data.rows, self.resamples)
        folder = ctx.workdir / "figures"
        model = next(a for a in results if a.manifest["stage"] == "import_model")
        protocols = data.rows[0].subject.protocols
        page = Page(
            "Týr-the-Pruner: heads and neurons, searched over depth",
            f"{model.manifest['sources']['source']['name']}, scale {self.scale}, calibration seed "
            f"{self.seed}. Calibration text {_calibration(results)}, test text "
            f"{protocols['test']}, held-out text {protocols['heldout']} "
            "(name-split-tokens x windows). Every figure was measured by effllm, except under "
            "“Beside the paper”.",
        )
        page.add(*smoke_warning(self.scale))
        page.add(Heading("Perplexity"), tyr.main_table(data, "test"))
        page.add(tyr.main_table(data, "heldout"))
        figures.draw_perplexity(data, folder)
        page.add(
            Figure(
                "perplexity",
                "Test perplexity over sparsity; lines that leave the picture are in the table.",
            )
        )
        page.add(Heading("What the paper claims, and what these numbers say"))
        page.add(*shown_at(self.scale, tyr.verdicts(data, speeds)))
        page.add(
            Text(
                "Verdicts rest on 95 % intervals over test documents, of differences paired by "
                "window, or over rounds of timing, for one calibration and search seed. Another "
                "draw moves the figures too, so a difference in perplexity counts only where its "
                f"interval clears {tyr.SEED_MARGIN:g} %. Searches judge on the text that all "
                "methods prune on, never on the held-out or test text. Claims of the paper are "
                "reproduced only under its conditions; those that differ here stand beside the "
                "outcome. Supported and not supported without more are about our own goals and "
                "controls, and about sparsities that the paper has no such figure for."
            )
        )
        for sparsity in tyr.sparsities(data):
            page.add(Heading(f"All metrics at {sparsity}"), tyr.detail_table(data, sparsity))
        if timed:
            config = timed[0].manifest["config"]
            page.add(Heading("Speed"))
            page.add(speed.speed_table(speeds, config["prompt_tokens"], config["new_tokens"]))
        if figures.draw_pareto(data, speeds, folder):
            page.add(Figure("pareto", "Quality against speed; the dense model has no label."))
        nets = [one for one in results if isinstance(one, SupernetFiles)]
        units = {one.name: one.units for artifact in nets for one in artifact.open().layers}
        if figures.draw_allocations(data.rows, units, folder):
            page.add(Heading("Where units were removed"))
            page.add(Figure("allocation", "Share of heads and of neurons removed in each block."))
        searches = tyr.searches(data.rows, results)
        if figures.draw_fitness(searches, folder):
            caption = "Fitness of the best candidate; lines break where new text was drawn."
            page.add(Heading("The search"), Figure("fitness", caption))
            page.add(*(Text(_effort(name, one)) for name, one in searches.items()))
        page.add(Heading("Beside the paper"), *tyr.paper_tables())
        page.add(Heading("Cost and provenance"), cost(results), Text(_largest(nets)))
        return self.publish(ctx, page, tyr.result_rows(data, speeds, "tyr"))


def _calibration(results: list[Artifact]) -> str:
    """Protocols of the windows that models were pruned on."""
    made = [one.manifest for one in results if one.manifest["stage"] == "make_windows"]
    found = {one["metrics"]["protocol"] for one in made if one["config"]["split"] == "calibration"}
    return ", ".join(sorted(found))


def _effort(name: str, allocation: Allocation) -> str:
    """What a search took."""
    found, timing = allocation.manifest["metrics"], allocation.manifest["timing"]
    if not found["generations"]:
        return f"{name}: no generation."
    return (
        f"{name}: {found['generations']} generations, "
        f"{found['improvements']} with a better allocation, {timing['seconds']:.0f} s; "
        f"{found['fewer_block_evaluations']:.2f} times fewer block evaluations than full passes "
        "for every fitness value that was asked for, "
        f"{found['fewer_by_late_starts']:.2f} times without counting values known from before."
    )


def _largest(nets: list[SupernetFiles]) -> str:
    """Bytes of the largest supernet."""
    sizes = [sum(entry["bytes"] for entry in one.manifest["outputs"].values()) for one in nets]
    return f"The largest supernet takes {max(sizes) / 1e9:.2f} GB."
