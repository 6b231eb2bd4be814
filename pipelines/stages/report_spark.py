"""The SparK report: bytes beside quality, pairs at equal bytes, a verdict per claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.report import ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportSpark(ReportStage):
    """Read the evaluation, and the times if there are any, and say what they show."""

    VERSION: ClassVar[int] = 5  # 5: one verdict rule, Student's t below 30 examples

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md`, `results.json` and `figures/`."""
        from effllm.pipelines.reports import caches, spark
        from effllm.pipelines.reports.frame import cost, smoke_warning
        from effllm.pipelines.reports.page import Heading, Page, Text
        from effllm.pipelines.reports.verdicts import short_name, shown_at

        results = ctx.input_list("results", Artifact)
        evaluations = [one for one in results if one.manifest["stage"] == "evaluate_cache"]
        evaluated = next(one for one in evaluations if _has(one, "windows", "prompts"))
        asked = [one for one in evaluations if not _has(one, "windows")]
        outside = [one for one in asked if not one.manifest["config"]["question_inside"]]
        by_label = {one.label: one for one in results}
        model = by_label[evaluated.manifest["inputs"]["model"]]

        def study_of(one: Artifact) -> caches.Study:
            asked_from = [by_label[label] for label in one.manifest["inputs"]["prompts"]]
            names = [
                each.manifest["sources"].get("source", {"name": "ours"}) for each in asked_from
            ]
            differs = spark.run_conditions(
                short_name(model.manifest["sources"]["source"]["name"]),
                " and ".join(each["name"] for each in names),
                inside=one.manifest["config"]["question_inside"],
            )
            return caches.Study.of(one, self.resamples, differs)

        study = study_of(evaluated)
        answers = study_of(outside[0]) if outside else study
        settings = study.settings
        page = Page(
            "SparK: key channels pruned per token, and recovered",
            f"{model.manifest['sources']['source']['name']}, scale {self.scale}, "
            f"{len(study.texts['dense'])} texts ({settings['protocol']}; the last "
            f"{settings['continuation']} tokens of each are read from the compressed cache), "
            f"{study.prompted} long prompts. Computed in "
            f"{evaluated.manifest['config']['dtype']}; bytes are those of the tensors held. Every "
            "figure was measured by effllm, except under “Beside the paper”.",
        )
        page.add(*smoke_warning(self.scale))
        main = list(study.about)
        folder = ctx.workdir / "figures"
        claims = Heading("What the paper claims, and what these numbers say")
        benched = next((one for one in results if one.manifest["stage"] == "cache_bench"), None)
        verdicts = spark.verdicts(study, answers)
        if benched is not None:
            verdicts += spark.reading_verdicts(benched)
        page.add(claims, *shown_at(self.scale, verdicts))
        page.add(
            Heading("Bytes beside quality"),
            Text(spark.region(study, main)),
            caches.quality_table(
                study,
                main,
                note="Bytes per token of the context, all layers, keys and values, with masks, "
                "signs, gains and dense tails. KL and perplexity on texts against the full cache "
                "in the dtype of the computation; answers on long prompts. 95 % "
                "intervals over texts or prompts.",
            ),
            spark.draw_tradeoff(study, main, folder),
            Heading("At equal bytes"),
            caches.pair_table(study, spark.PAIRS),
        )
        if answers is not study and answers.prompted:
            page.add(caches.answer_table(answers, spark.PAIRS))
        for one in evaluations:
            if not _has(one, "prompts"):
                ablation = caches.Study.of(one, self.resamples)
                page.add(Heading("Ablations"), caches.quality_table(ablation, list(ablation.about)))
        page.add(Heading("By kind of prompt"), Text(caches.dropped_tasks(study)))
        if study.prompted:
            page.add(caches.task_table(study, main))
        for one in asked:
            other = caches.Study.of(one, self.resamples)
            if other.prompted:
                page.add(
                    Text(caches.dropped_tasks(other)),
                    caches.task_table(other, list(other.about)),
                )
        if benched is not None:
            page.add(Heading("Time"), caches.timing_table(benched))
        picture = spark.draw_kept(evaluated, folder)
        if picture is not None:
            page.add(Heading("Kept channels"), picture)
        page.add(Heading("Beside the paper"), spark.paper_table())
        page.add(Heading("Cost and provenance"), cost(results))
        return self.publish(ctx, page, spark.result_rows(study, evaluated))


def _has(evaluated: Artifact, *slots: str) -> bool:
    """Whether an evaluation read something from all of these inputs."""
    return all(evaluated.manifest["inputs"][slot] for slot in slots)
