"""The FLy reports: speed beside quality with loosened tokens in context, and right answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Prompts
from effllm.pipelines.artifacts.decoding import PassCosts, Replay
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.report import ReportStage


@dataclass(frozen=True, kw_only=True)
class ReportFly(ReportStage):
    """Read the benchmark, the costs and the replay if there are any, and say what they show."""

    VERSION: ClassVar[int] = 4  # 4: one verdict rule, Student's t below 30 examples

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md`, `results.json` and `figures/`."""
        from effllm.pipelines.reports import costs, decoding, fly, loosened
        from effllm.pipelines.reports.frame import cost, smoke_warning
        from effllm.pipelines.reports.page import Heading, Page, Text
        from effllm.pipelines.reports.replay import (
            WHAT_IT_IS,
            ReplayRows,
            draw_tradeoff,
            knob_table,
        )
        from effllm.pipelines.reports.verdicts import shown_at

        results = ctx.input_list("results", Artifact)
        benched = next(one for one in results if one.manifest["stage"] == "decode_bench")
        # More than one model and set of prompts may be among the results: those of the benchmark.
        by_label = {one.label: one for one in results}
        target = by_label[benched.manifest["inputs"]["model"]]
        prompts = by_label[benched.manifest["inputs"]["prompts"]]
        assert isinstance(target, Checkpoint) and isinstance(prompts, Prompts)
        tokenizer = target.load_tokenizer()
        bench = decoding.Bench.of(
            benched.read_rows("predictions.jsonl"),
            benched.read_json("arms.json"),
            self.resamples,
            fly.run_conditions(
                target.manifest["sources"]["source"]["name"],
                prompts.manifest["sources"].get("source", {"name": "from articles"})["name"],
            ),
        )
        texts = {prompt.id: prompt.text for prompt in prompts.prompts()}
        page = Page(
            "FLy: loosely speculative decoding",
            f"{target.manifest['sources']['source']['name']}, scale {self.scale}, batch 1, greedy, "
            f"{len(texts)} prompts. Every figure was measured by effllm, except under “Beside the "
            "paper”.",
        )
        page.add(*smoke_warning(self.scale))
        page.add(Heading("Speed beside quality"), decoding.speed_table(bench))
        claims = Heading("What the paper claims, and what these numbers say")
        page.add(claims, *shown_at(self.scale, fly.verdicts(bench)))
        page.add(Heading("Passes and time"), decoding.cost_table(bench))
        page.add(fly.draw_acceptance(bench, ctx.workdir / "figures"))
        measured = next(iter(ctx.input_list("results", PassCosts)), None)
        if measured is not None:
            page.add(Heading("Costs on this machine"), costs.pass_table(measured))
            page.add(costs.forecast_table(measured))
        page.add(Heading("The text"), decoding.text_table(bench))
        page.add(Heading("By kind of prompt"), decoding.group_table(bench))
        page.add(Heading("Mismatches"), fly.gate_table(bench))
        page.add(loosened.class_table(bench, tokenizer))
        page.add(Heading("Loosened tokens in context"))
        page.add(*loosened.loosened_in_context(bench, tokenizer, texts))
        centre = next((one for one in bench.about.values() if one.is_fly), None)
        swept = next(iter(ctx.input_list("results", Replay)), None)
        if swept is not None and centre is not None:
            data = ReplayRows.of(swept, centre)
            page.add(Heading("Other settings, from recorded blocks"), Text(WHAT_IT_IS))
            page.add(draw_tradeoff(data, ctx.workdir / "figures"))
            page.add(*(knob_table(data, arm) for arm in data.arms))
        page.add(Heading("Beside the paper"), fly.paper_table())
        page.add(Heading("Cost and provenance"), cost(results))
        return self.publish(ctx, page, fly.result_rows(bench, benched))


@dataclass(frozen=True, kw_only=True)
class ReportFlyAccuracy(ReportStage):
    """Right answers of every decoder beside those of plain decoding."""

    VERSION: ClassVar[int] = 2  # 2: one verdict rule, Student's t below 30 examples

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md` and `results.json`."""
        from effllm.pipelines.reports import answers
        from effllm.pipelines.reports.frame import cost, smoke_warning
        from effllm.pipelines.reports.page import Heading, Page
        from effllm.pipelines.reports.verdicts import shown_at

        results = ctx.input_list("results", Artifact)
        read = next(one for one in results if one.manifest["stage"] == "evaluate_generation")
        bench = answers.gather_answers(results, self.resamples)
        target = next(one for one in results if one.label == read.manifest["inputs"]["model"])
        name = target.manifest["sources"]["source"]["name"]
        page = Page(
            "FLy: right answers",
            f"Target {name}, scale {self.scale}, greedy. Every figure was measured by effllm.",
        )
        page.add(*smoke_warning(self.scale))
        page.add(Heading("Right answers"), answers.answer_table(bench))
        verdicts = answers.verdicts(bench, name)
        page.add(Heading("Verdicts"), *shown_at(self.scale, verdicts))
        page.add(Heading("Cost and provenance"), cost(results))
        return self.publish(ctx, page, answers.result_rows(bench))
