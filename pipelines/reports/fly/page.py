"""The FLy reports: speed beside quality with loosened tokens in context, and right answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Prompts
from effllm.pipelines.artifacts.decoding import PassCosts, Replay
from effllm.pipelines.reports.decoders import bench as tables
from effllm.pipelines.reports.decoders import forecasts
from effllm.pipelines.reports.fly import answers, claims, loosened, replay
from effllm.pipelines.reports.fly.tables import draw_acceptance, gate_table, result_rows
from effllm.pipelines.reports.page import Text
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.stage import Findings, ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportFly(ReportStage):
    """Read the benchmark, the costs and the replay if there are any, and say what they show."""

    VERSION: ClassVar[int] = 6  # 6: rows name scale, model and texts
    TITLE: ClassVar[str] = "FLy: loosely speculative decoding"
    QUESTION: ClassVar[str] = (
        "Does keeping drafts that are worded differently pay, and what does it cost in quality?"
    )
    ARXIV: ClassVar[str] = "2511.22972"

    def find(self, results: Results, figures: Path) -> Findings:
        """Speed and quality of all arms, what was loosened, and other settings from a replay."""
        benched = results.first("decode_bench")
        # More than one model and set of prompts may be among the results: those of the benchmark.
        target = results.input(benched, "model", Checkpoint)
        prompts = results.input(benched, "prompts", Prompts)
        name = target.manifest["sources"]["source"]["name"]
        asked = prompts.manifest["sources"].get("source", {"name": "from articles"})["name"]
        differs = claims.run_conditions(name, asked)
        bench = tables.Bench.read(benched, self.resamples, differs)
        texts = {prompt.id: prompt.text for prompt in prompts.prompts()}
        tokenizer = target.load_tokenizer()
        costs = results.of(PassCosts)[:1]
        return Findings(
            subject=f"{name}, batch 1, greedy, {len(texts)} prompts",
            answer=claims.answer(bench),
            main=[tables.speed_table(bench)],
            rows=result_rows(bench, benched),
            verdicts=claims.verdicts(bench),
            conditions=differs,
            sections={
                "Passes and time": [tables.cost_table(bench), draw_acceptance(bench, figures)],
                "Costs on this machine": [
                    table(measured)
                    for measured in costs
                    for table in (forecasts.pass_table, forecasts.forecast_table)
                ],
                "The text": [tables.text_table(bench)],
                "By kind of prompt": [tables.group_table(bench)],
                "Mismatches": [gate_table(bench), loosened.class_table(bench, tokenizer)],
                "Loosened tokens in context": loosened.loosened_in_context(bench, tokenizer, texts),
                "Other settings, from recorded blocks": [
                    block
                    for replayed in results.of(Replay)[:1]
                    for fly in [about for about in bench.about.values() if about.is_fly][:1]
                    for block in (
                        Text(replay.WHAT_IT_IS),
                        *replay.blocks(replay.ReplayRows.of(replayed, fly), figures),
                    )
                ],
            },
        )


@dataclass(frozen=True, kw_only=True)
class ReportFlyAccuracy(ReportStage):
    """Right answers of every decoder beside those of plain decoding."""

    VERSION: ClassVar[int] = 4  # 4: rows name scale, model and texts
    TITLE: ClassVar[str] = "FLy: right answers"
    QUESTION: ClassVar[str] = "What does loosened verification cost in right answers?"
    ARXIV: ClassVar[str] = "2511.22972"

    def find(self, results: Results, figures: Path) -> Findings:
        """Right answers of all decoders."""
        read = results.first("evaluate_generation")
        target = results.input(read, "model", Checkpoint).manifest["sources"]["source"]["name"]
        bench, made = answers.gather_answers(results, self.resamples)
        return Findings(
            subject=f"Target {target}, greedy",
            answer=answers.answer(bench),
            main=[answers.answer_table(bench)],
            rows=answers.result_rows(bench, made),
            verdicts=answers.verdicts(bench, target),
        )
