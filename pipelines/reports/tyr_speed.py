"""Speeds of smaller models over the dense one, for the Týr report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from effllm.modules.evaluation.intervals import Interval, estimate
from effllm.pipelines.artifacts.measured import Speeds
from effllm.pipelines.reports.comparison import Row, number
from effllm.pipelines.reports.page import Table


class Speedup:
    """A model's speed over the dense one, round by round in the same process.

    Attributes:
        row: the model.
        prefill: ratio of mean seconds of a prompt, dense over this model, with its interval.
        decode: the same of decoding.
        prefill_seconds: mean.
        tokens_per_second: decoded tokens over seconds.
        distinct: distinct over all pairs of tokens in what was decoded; low when text repeats.
    """

    def __init__(self, row: Row, mine: list[Any], dense: list[Any], resamples: int) -> None:
        self.row = row
        self.prefill = _ratio(mine, dense, "prefill_seconds", resamples)
        self.decode = _ratio(mine, dense, "decode_seconds", resamples)
        self.prefill_seconds = float(np.mean([one["prefill_seconds"] for one in mine]))
        self.distinct = float(np.mean([one["distinct"] for one in mine]))
        self.tokens_per_second = sum(one["tokens"] for one in mine) / sum(
            one["decode_seconds"] for one in mine
        )

    @property
    def figures(self) -> dict[str, float]:
        """Its speeds as metrics of a row; seconds, tokens per second, and ratios."""
        return {
            "tokens_per_second": self.tokens_per_second,
            "prefill_seconds": self.prefill_seconds,
            "decode_speedup": self.decode.value,
            "prefill_speedup": self.prefill.value,
        }


def _ratio(mine: list[Any], dense: list[Any], key: str, resamples: int) -> Interval:
    pairs = np.array([[a[key], b[key]] for a, b in zip(mine, dense, strict=True)])
    return estimate(
        pairs,
        transform=lambda m: m[..., 1] / m[..., 0],
        bounds=(0, np.inf),
        resamples=resamples,
    )


def gather_speeds(
    artifacts: Sequence[Speeds], rows: Sequence[Row], resamples: int
) -> list[Speedup]:
    """Speeds of all measured models, in the order of the rows."""
    found = []
    for artifact in artifacts:
        by_model: dict[str, list[Any]] = {}
        for one in sorted(artifact.read_rows("speeds.jsonl"), key=lambda row: row["id"]):
            by_model.setdefault(one["set"], []).append(one)
        dense = by_model[artifact.read_json("models.json")["dense"]]
        found += [
            Speedup(row, by_model[row.subject.label], dense, resamples)
            for row in rows
            if row.subject.label in by_model
        ]
    return found


def speed_table(speeds: Sequence[Speedup], prompt: int, new: int) -> Table:
    """Time to first token and decoding speed."""
    body = [
        [
            one.row.method,
            one.row.pattern,
            f"{one.prefill_seconds:.3f}",
            times(one.prefill),
            f"{one.tokens_per_second:.1f}",
            times(one.decode),
            number(one.row.subject.sizes["parameters"] / 1e6),
            f"{100 * one.distinct:.0f}",
        ]
        for one in speeds
    ]
    return Table(
        [
            "Model",
            "Removed",
            f"TTFT of {prompt} tokens, s",
            "times dense",
            "tokens/s",
            "times dense",
            "Parameters, M",
            "distinct pairs, %",
        ],
        body,
        note="Same loop, prompts, packed bfloat16 weights where the machine has them; "
        f"{new} tokens are decoded behind each prompt; the models take turns in one process. 95 % "
        "intervals over rounds. Distinct pairs: of the tokens decoded greedily; few "
        "mean that the model repeats itself.",
        strong=frozenset(i for i, one in enumerate(speeds) if one.row.base == "searched"),
    )


def times(interval: Interval) -> str:
    """`1.41 [1.38, 1.45]`."""
    return interval.text(lambda value: f"{value:.2f}")
