"""The SparK report: bytes beside quality, pairs at equal bytes, a verdict per claim."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.page import Text
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.spark import claims, tables
from effllm.pipelines.reports.spark import figures as draw
from effllm.pipelines.reports.spark.names import PAIRS
from effllm.pipelines.reports.spark.study import Study
from effllm.pipelines.reports.stage import Findings, ReportStage
from effllm.pipelines.reports.verdicts import short_name


@dataclass(frozen=True, kw_only=True)
class ReportSpark(ReportStage):
    """Read the evaluation, and the times if there are any, and say what they show."""

    VERSION: ClassVar[int] = 7  # 7: rows name scale, model and texts
    TITLE: ClassVar[str] = "SparK: key channels pruned per token, and recovered"
    QUESTION: ClassVar[str] = (
        "Does keeping a few channels of each key, others for each token, save real bytes, and is "
        "that the best use of them?"
    )
    ARXIV: ClassVar[str] = "2508.15212"

    def find(self, results: Results, figures: Path) -> Findings:
        """Bytes beside quality of all arms, answers, ablations and times."""
        evaluated = results.first("evaluate_cache", lambda made: _read(made, "windows", "prompts"))
        evaluations = results.by("evaluate_cache")
        by_label = {result.label: result for result in results}

        def study_of(made: Artifact) -> Study:
            asked = [by_label[label] for label in made.manifest["inputs"]["prompts"]]
            names = [
                prompts.manifest["sources"].get("source", {"name": "ours"})["name"]
                for prompts in asked
            ]
            differs = claims.run_conditions(
                short_name(results.model),
                " and ".join(names),
                inside=made.manifest["config"]["question_inside"],
            )
            return Study.of(made, self.resamples, differs)

        study = study_of(evaluated)
        asked = {one.label: study_of(one) for one in evaluations if not _read(one, "windows")}
        outside = [one for one in asked.values() if not one.settings["question_inside"]]
        answers = outside[0] if outside else study
        benched = results.by("cache_bench")[:1]
        return Findings(
            subject=f"{results.model}, {len(study.texts.arms['dense'])} texts "
            f"({study.settings['protocol']}; the last {study.settings['continuation']} tokens of "
            f"each are read from the compressed cache), {study.prompted} long prompts, computed in "
            f"{evaluated.manifest['config']['dtype']}, bytes those of the tensors held",
            answer=claims.answer(study, answers),
            main=[
                tables.quality_table(
                    study,
                    note="Bytes per token of the context, all layers, keys and values, with masks, "
                    "signs, gains and dense tails. KL and perplexity on texts against the full "
                    "cache in the dtype of the computation; answers on long prompts. 95 % "
                    "intervals over texts or prompts.",
                ),
                draw.draw_tradeoff(study, figures),
                Text(claims.region(study)),
            ],
            rows=tables.result_rows(study, evaluated),
            verdicts={
                **claims.verdicts(study, answers),
                "Time": [one for bench in benched for one in claims.reading_verdicts(bench)],
            },
            conditions=study.conditions,
            sections={
                "At equal bytes": [
                    tables.pair_table(study, PAIRS),
                    tables.answer_table(answers, PAIRS)
                    if answers is not study and answers.prompted
                    else None,
                ],
                "Ablations": [
                    tables.quality_table(Study.of(one, self.resamples))
                    for one in evaluations
                    if not _read(one, "prompts")
                ],
                "By kind of prompt": [
                    block
                    for one in (study, *asked.values())
                    for block in (Text(tables.dropped_tasks(one)), tables.task_table(one))
                ],
                "Time": [table for bench in benched for table in tables.timing_tables(bench)],
                "Kept channels": [draw.draw_kept(evaluated, figures)],
            },
        )


def _read(made: Artifact, *slots: str) -> bool:
    """Whether an evaluation read something from all of these inputs."""
    return all(made.manifest["inputs"][slot] for slot in slots)
