"""The first look: for pruning, decoding and caches a sentence with its numbers, and a picture.

There is too little text for intervals or verdicts; the papers' own reports have both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import ClassVar

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.reports.figures import COLOURS, figure, write_csv
from effllm.pipelines.reports.page import Figure, Text
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.stage import Findings, ReportStage

_PRUNERS = {"wanda": "Wanda", "sparsegpt": "SparseGPT"}
Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ReportDemo(ReportStage):
    """Read what pruning, decoding and compression did, and say it."""

    TITLE: ClassVar[str] = "A first look"
    QUESTION: ClassVar[str] = (
        "What do pruning, drafts and a compressed cache do to a language model?"
    )

    def find(self, results: Results, figures: Path) -> Findings:
        """Three sentences and three pictures."""
        pruned = next(one for one in results.of(Checkpoint) if one.manifest["stage"] == "prune")
        blocks = results.first("import_model").manifest["metrics"]["blocks"]
        perplexities = _perplexities(results)
        benched, evaluated = results.first("decode_bench"), results.first("evaluate_cache")
        speeds, same = _speeds(benched)
        held, worse = _caches(evaluated)
        return Findings(
            subject=f"{results.model}, on little text",
            answer="Each in a sentence and a picture: what the methods do, not how well. The "
            "papers' own reports have text enough to judge.",
            main=[],
            rows=[
                *_rows("perplexity", perplexities, pruned),
                *_rows("tokens_per_second", speeds, benched),
                *_rows("bytes_per_token", held, evaluated),
            ],
            sections={
                "Pruning": [
                    Text(
                        "With two of each four weights gone from the first "
                        f"{pruned.history[-1]['blocks']} of {blocks} blocks, perplexity (how many "
                        f"words the model hesitates between) rises from {perplexities['Dense']:.1f}"
                        f" to {perplexities['Wanda']:.1f} by Wanda and to "
                        f"{perplexities['SparseGPT']:.1f} by SparseGPT, which repairs the weights "
                        "that stay."
                    ),
                    _draw_bars(figures, "perplexity", perplexities, "perplexity"),
                ],
                "Decoding": [
                    Text(
                        "Guessing that the text goes on as it did before, and checking eight "
                        f"guesses in one pass, writes {speeds['lookup']:.0f} instead of "
                        f"{speeds['plain']:.0f} tokens a second: "
                        f"{speeds['lookup'] / speeds['plain']:.2f} times as fast, with {same}."
                    ),
                    _draw_bars(figures, "speed", speeds, "tokens per second"),
                ],
                "Cache": [
                    Text(
                        "SparK stores few of the channels of each key and makes up the others: a "
                        f"token of context takes {held['spark']:,.0f} bytes instead of "
                        f"{held['dense']:,.0f}, {100 * (1 - held['spark'] / held['dense']):.0f} % "
                        "less, and the perplexity of what follows changes by "
                        f"{100 * worse:+.1f} %."
                    ),
                    _draw_bars(figures, "cache", held, "bytes per token of context"),
                ],
            },
        )


def _perplexities(results: Results) -> Figures:
    """Test perplexity of the model as it is and of each pruned one."""
    found = {}
    for measured in results.of(Predictions):
        if measured.manifest["stage"] == "perplexity":
            last, metrics = measured.subject["history"][-1], measured.manifest["metrics"]
            name = _PRUNERS[last["pruner"]] if last["stage"] == "prune" else "Dense"
            found[name] = next(metrics[key] for key in metrics if key.startswith("test/"))
    return {name: found[name] for name in ("Dense", *_PRUNERS.values())}


def _speeds(bench: Artifact) -> tuple[Figures, str]:
    """Tokens per second of both arms, and how many texts are the same."""
    rows = bench.read_rows("predictions.jsonl")
    mine = [row for row in rows if row["set"] == "lookup"]
    same = sum(row["first_difference"] is None for row in mine)
    metrics = bench.manifest["metrics"]
    speeds = {name: metrics[f"{name}/tokens_per_second"] for name in ("plain", "lookup")}
    whole = f"the same text for {same} of {len(mine)} prompts"
    return speeds, "the same text" if same == len(mine) else whole


def _caches(evaluated: Artifact) -> tuple[Figures, float]:
    """Bytes per token of context of both arms, and by how much SparK's perplexity is higher."""
    rows = evaluated.read_rows("predictions.jsonl")
    arms = {name: [row for row in rows if row["set"] == name] for name in ("dense", "spark")}
    held = {
        name: sum(row["bytes"] for row in mine) / sum(row["context_tokens"] for row in mine)
        for name, mine in arms.items()
    }
    nll = {name: mean(row["nll"] for row in mine) for name, mine in arms.items()}
    return held, math.exp(nll["spark"] - nll["dense"]) - 1


def _draw_bars(folder: Path, name: str, values: Mapping[str, float], measure: str) -> Figure:
    with figure(folder, name, size=(6.4, 0.9 + 0.45 * len(values))) as axes:
        bars = axes.barh(list(values), list(values.values()), color=COLOURS[: len(values)])
        axes.bar_label(bars, [f"{value:,.4g}" for value in values.values()], padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel(measure)
    write_csv(folder, name, [{"method": key, measure: value} for key, value in values.items()])
    return Figure(name, f"{measure[0].upper()}{measure[1:]}.")


def _rows(measure: str, values: Figures, made: Artifact) -> list[ResultRow]:
    return [
        ResultRow("demo", name, name, "", None, made.label, {measure: value}, {})
        for name, value in values.items()
    ]
