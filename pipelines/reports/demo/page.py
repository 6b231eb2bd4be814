"""The first look: a picture and a sentence each for pruning, decoding and a compressed cache.

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
from effllm.pipelines.reports.page import Figure
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.stage import Findings, ReportStage
from effllm.pipelines.reports.words import number

_PRUNERS = {"wanda": "Wanda", "sparsegpt": "SparseGPT"}


@dataclass(frozen=True, kw_only=True)
class ReportDemo(ReportStage):
    """Read what pruning, decoding and compression did, and say it."""

    VERSION: ClassVar[int] = 2  # 2: bytes without exponents; rows name scale, model and texts
    TITLE: ClassVar[str] = "A first look"
    QUESTION: ClassVar[str] = (
        "What do pruning, guessing ahead and a compressed cache do to a model?"
    )
    ARXIV: ClassVar[str] = ""

    def find(self, results: Results, figures: Path) -> Findings:
        """Perplexities of pruned models, speeds of two decoders, bytes of two caches."""
        bench, evaluated = results.first("decode_bench"), results.first("evaluate_cache")
        made, perplexities = _perplexities(results)
        speeds, held = _speeds(bench), _held(evaluated)
        pruned = results.first("prune")
        assert isinstance(pruned, Checkpoint)
        blocks = results.first("import_model").manifest["metrics"]["blocks"]
        return Findings(
            subject=f"{results.model} on little text",
            answer="The pictures say it in a sentence each. They show what the methods do, not how "
            "well: the papers' own reports have text enough to judge.",
            main=[
                _bars(
                    figures,
                    "perplexity",
                    perplexities,
                    f"With two of each four weights gone from the first "
                    f"{pruned.history[-1]['blocks']} of {blocks} blocks, perplexity (how many "
                    f"words the model hesitates between) goes from {perplexities['Dense']:.1f} to "
                    f"{perplexities['Wanda']:.1f} by Wanda and to {perplexities['SparseGPT']:.1f} "
                    "by SparseGPT, which repairs the weights that stay.",
                ),
                _bars(
                    figures,
                    "tokens per second",
                    speeds,
                    "Guessing that the text goes on as it did before, and checking the guesses in "
                    f"one pass, is {speeds['Lookup'] / speeds['Plain']:.2f} times as fast, "
                    f"with {_same(bench)}.",
                ),
                _bars(
                    figures,
                    "bytes per token of context",
                    held,
                    "SparK stores few channels of each key of the cache and makes up the others: "
                    f"{100 * (1 - held['SparK'] / held['Dense cache']):.0f} % fewer bytes, while "
                    f"the perplexity of what follows changes by {100 * _worse(evaluated):+.1f} %.",
                ),
            ],
            rows=[
                *(_row(name, "perplexity", perplexities[name], made[name]) for name in made),
                *(_row(name, "tokens_per_second", speeds[name], bench.label) for name in speeds),
                *(_row(name, "bytes_per_token", held[name], evaluated.label) for name in held),
            ],
        )


def _perplexities(results: Results) -> tuple[dict[str, str], dict[str, float]]:
    """The result, and its test perplexity, of the model as it is and of each pruned one."""
    found = {}
    for measured in results.by("perplexity"):
        assert isinstance(measured, Predictions)
        last, metrics = measured.subject["history"][-1], measured.manifest["metrics"]
        name = _PRUNERS[last["pruner"]] if last["stage"] == "prune" else "Dense"
        value = next(metrics[key] for key in metrics if key.startswith("test/"))
        found[name] = measured.label, value
    names = ("Dense", *_PRUNERS.values())
    return {name: found[name][0] for name in names}, {name: found[name][1] for name in names}


def _speeds(bench: Artifact) -> dict[str, float]:
    names = ("plain", "lookup")
    return {name.title(): bench.manifest["metrics"][f"{name}/tokens_per_second"] for name in names}


def _same(bench: Artifact) -> str:
    """How many texts of both decoders are the same."""
    rows = [row for row in bench.read_rows("predictions.jsonl") if row["set"] == "lookup"]
    same = sum(row["first_difference"] is None for row in rows)
    return "the same text" if same == len(rows) else f"{same} of {len(rows)} texts the same"


def _held(evaluated: Artifact) -> dict[str, float]:
    """Bytes of the cache per token of context."""
    rows = evaluated.read_rows("predictions.jsonl")
    return {
        title: sum(row["bytes"] for row in rows if row["set"] == name)
        / sum(row["context_tokens"] for row in rows if row["set"] == name)
        for name, title in (("dense", "Dense cache"), ("spark", "SparK"))
    }


def _worse(evaluated: Artifact) -> float:
    """By which share perplexity is higher with the compressed cache."""
    rows = evaluated.read_rows("predictions.jsonl")
    nll = {
        name: mean(row["nll"] for row in rows if row["set"] == name) for name in ("dense", "spark")
    }
    return math.exp(nll["spark"] - nll["dense"]) - 1


def _bars(folder: Path, measure: str, values: Mapping[str, float], caption: str) -> Figure:
    name = measure.replace(" ", "_")
    with figure(folder, name, size=(6.4, 0.9 + 0.45 * len(values))) as axes:
        bars = axes.barh(list(values), list(values.values()), color=COLOURS[: len(values)])
        axes.bar_label(bars, [number(value) for value in values.values()], padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel(measure)
    write_csv(folder, name, [{"method": key, measure: value} for key, value in values.items()])
    return Figure(name, caption)


def _row(name: str, measure: str, value: float, artifact: str) -> ResultRow:
    return ResultRow("demo", name, name, "", None, artifact, {measure: value}, {})
