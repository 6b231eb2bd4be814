"""The Amphista report: tokens per pass at equal trees, and what a gain is due to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from effllm.pipelines.reports.amphista import claims, speed, tables
from effllm.pipelines.reports.amphista import figures as draw
from effllm.pipelines.reports.amphista.scores import Study
from effllm.pipelines.reports.decoders import bench as decoding
from effllm.pipelines.reports.page import Text
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.stage import Findings, ReportStage
from effllm.pipelines.reports.verdicts import model_and_texts


@dataclass(frozen=True, kw_only=True)
class ReportAmphista(ReportStage):
    """Read the scores of all arms, and say what they show."""

    VERSION: ClassVar[int] = 3  # 3: rows name scale, model and texts
    TITLE: ClassVar[str] = "Amphista: drafting heads that see each other"
    QUESTION: ClassVar[str] = (
        "Do heads that see each other get more tokens per pass out of the same data?"
    )
    ARXIV: ClassVar[str] = "2406.13170"

    def find(self, results: Results, figures: Path) -> Findings:
        """Tokens per pass at equal trees, the heads themselves, and decoding with them."""
        study = Study.of(results, self.resamples)
        target = model_and_texts(results)["model"]
        benches = [decoding.Bench.read(made, self.resamples) for made in results.by("bench_heads")]
        return Findings(
            subject=f"{target}, greedy text of its own",
            answer=claims.answer(study),
            main=[tables.tau_table(study), draw.draw_tau(study, figures)],
            rows=tables.result_rows(study),
            verdicts={
                **claims.verdicts(study, target),
                "Speed": [verdict for bench in benches for verdict in speed.verdicts(bench)],
            },
            conditions=claims.conditions(target),
            sections={
                "Amphista over each other drafter": [tables.gain_table(study)],
                "How often each head is right": [
                    tables.accuracy_table(study),
                    draw.draw_curves(study, figures),
                ],
                "The tree": [draw.draw_tree(study, claims.middle(study), figures)],
                "Decoding": [
                    table
                    for bench in benches
                    for table in (
                        decoding.speed_table(bench),
                        speed.promise_table(bench, study),
                        decoding.cost_table(bench),
                        decoding.group_table(bench),
                        decoding.text_table(bench),
                    )
                ],
                "The texts": [Text(tables.texts(results))],
            },
        )
