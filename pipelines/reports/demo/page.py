"""The page: for pruning, decoding and caches a sentence with its numbers, and a picture.

There is too little text for intervals or verdicts; the papers' own reports have both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.reports.figures import COLOURS, figure, write_csv
from effllm.pipelines.reports.frame import cost, smoke_warning
from effllm.pipelines.reports.page import Figure, Heading, Page, Text

_PRUNERS = {"wanda": "Wanda", "sparsegpt": "SparseGPT"}
Figures = dict[str, float]


def write_page(
    results: Sequence[Artifact], scale: str, folder: Path
) -> tuple[Page, list[dict[str, Any]]]:
    """The report of a run.

    Args:
        results: all of them.
        scale: smoke, cpu or paper.
        folder: for figures.

    Returns:
        The page, and the rows of `results.json`.
    """
    base = _made_by(results, "import_model")[0]
    pruned = _made_by(results, "prune")[0]
    assert isinstance(pruned, Checkpoint)
    perplexities = _perplexities(results)
    speeds, same = _speeds(_made_by(results, "decode_bench")[0])
    held, worse = _caches(_made_by(results, "evaluate_cache")[0])
    page = Page(
        "A first look",
        f"{base.manifest['sources']['source']['name']}, scale {scale}, on little text: what the "
        "methods do, not how well. The papers' own reports have text enough to judge.",
    )
    page.add(
        *smoke_warning(scale),
        Heading("Pruning"),
        Text(
            f"With two of each four weights gone from the first {pruned.history[-1]['blocks']} of "
            f"{base.manifest['metrics']['blocks']} blocks, perplexity (how many words the model "
            f"hesitates between) rises from {perplexities['Dense']:.1f} to "
            f"{perplexities['Wanda']:.1f} by Wanda and to {perplexities['SparseGPT']:.1f} by "
            "SparseGPT, which repairs the weights that stay."
        ),
        _draw_bars(folder, "perplexity", perplexities, "perplexity"),
        Heading("Decoding"),
        Text(
            "Guessing that the text goes on as it did before, and checking eight guesses in one "
            f"pass, writes {speeds['lookup']:.0f} instead of {speeds['plain']:.0f} tokens a "
            f"second: {speeds['lookup'] / speeds['plain']:.2f} times as fast, with {same}."
        ),
        _draw_bars(folder, "speed", speeds, "tokens per second"),
        Heading("Cache"),
        Text(
            "SparK stores few of the channels of each key and makes up the others: a token of "
            f"context takes {held['spark']:,.0f} bytes instead of {held['dense']:,.0f}, "
            f"{100 * (1 - held['spark'] / held['dense']):.0f} % less, and the perplexity of what "
            f"follows changes by {100 * worse:+.1f} %."
        ),
        _draw_bars(folder, "cache", held, "bytes per token of context"),
        Heading("Cost and provenance"),
        cost(results),
    )
    rows = [
        *_rows("perplexity", perplexities),
        *_rows("tokens_per_second", speeds),
        *_rows("bytes_per_token", held),
    ]
    return page, rows


def _made_by(results: Sequence[Artifact], stage: str) -> list[Artifact]:
    return [one for one in results if one.manifest["stage"] == stage]


def _perplexities(results: Sequence[Artifact]) -> Figures:
    """Test perplexity of the model as it is and of each pruned one."""
    found = {}
    for one in _made_by(results, "perplexity"):
        assert isinstance(one, Predictions)
        last = one.subject["history"][-1]
        name = _PRUNERS[last["pruner"]] if last["stage"] == "prune" else "Dense"
        metrics = one.manifest["metrics"]
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


def _rows(measure: str, values: Figures) -> list[dict[str, Any]]:
    """Rows of `results.json`: `{paper, method, pattern, seed, metrics, intervals, n, artifact}`."""
    return [
        {
            "paper": "demo",
            "method": name,
            "title": name,
            "pattern": "",
            "seed": None,
            "metrics": {measure: value},
            "intervals": {},
            "n": {},
            "artifact": None,
        }
        for name, value in values.items()
    ]
