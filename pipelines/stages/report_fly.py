"""The FLy report: speed beside quality, loosened tokens in context, a verdict per claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effllm.pipelines.artifacts import Artifact, Checkpoint, Report, write_json
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class ReportFly(Stage):
    """Read the benchmark and say what it shows.

    Args:
        scale: smoke, cpu or paper; for the title.
        resamples: of the bootstrap.
    """

    INPUTS: ClassVar = {"results": Many(Artifact)}
    OUTPUT: ClassVar = Report

    scale: str
    resamples: int

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md` and `results.json`."""
        from effllm.pipelines.reports import fly
        from effllm.pipelines.reports.decoding import Bench, group_table, speed_table
        from effllm.pipelines.reports.page import Heading, Page, Text

        results = ctx.input_list("results", Artifact)
        benched = next(one for one in results if one.manifest["stage"] == "decode_bench")
        rows = benched.read_rows("predictions.jsonl")
        bench = Bench.of(rows, benched.read_json("arms.json"), self.resamples)
        model = next(one for one in results if one.manifest["stage"] == "import_model")
        tokenizer = ctx_checkpoint(results).load_tokenizer()
        page = Page(
            "FLy: loosely speculative decoding",
            f"{model.manifest['sources']['source']['name']}, scale {self.scale}, batch 1, greedy, "
            f"{len(bench.arms['plain'])} prompts. Every figure was measured by effllm, except "
            "under “Beside the paper”.",
        )
        if self.scale == "smoke":
            page.add(Text("A smoke run of a tiny random model: its figures mean nothing."))
        page.add(Heading("Speed beside quality"), speed_table(bench))
        verdicts = fly.verdicts(bench)
        page.add(Heading("What the paper claims, and what these numbers say"), *verdicts)
        page.add(Heading("By kind of prompt"), group_table(bench))
        page.add(Heading("The gate"), fly.gate_table(bench))
        page.add(Heading("Loosened tokens in context"), fly.loosened_table(bench, tokenizer))
        page.add(Heading("Beside the paper"), fly.paper_table())
        page.write(ctx.workdir)
        write_json(ctx.workdir / "results.json", fly.result_rows(bench, benched.label, benched))
        outcomes = [verdict.outcome for verdict in verdicts]
        return {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)}


def ctx_checkpoint(results: list[Artifact]) -> Checkpoint:
    """The target among the results."""
    return next(one for one in results if isinstance(one, Checkpoint))
