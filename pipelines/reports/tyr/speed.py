"""Speeds of smaller models over the dense one, round by round in the same process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts.measured import Speeds
from effllm.pipelines.reports.models.comparison import Row
from effllm.pipelines.reports.page import Table
from effllm.pipelines.reports.paired import Paired
from effllm.pipelines.reports.table import Column, make_table


@dataclass(frozen=True)
class Speedup:
    """A model's speed over the dense one.

    Attributes:
        row: the model.
        passes: of all models that were timed together, by the label of the model.
        dense: label of the dense one.
    """

    row: Row
    passes: Paired
    dense: str

    @property
    def prefill(self) -> Interval:
        """Mean seconds of a prompt, dense over this model."""
        return self.passes.over(self.dense, self.row.subject.label, "prefill_seconds")

    @property
    def decode(self) -> Interval:
        """The same of decoding."""
        return self.passes.over(self.dense, self.row.subject.label, "decode_seconds")

    def mean(self, key: str) -> float:
        """Mean over rounds."""
        return float(np.mean(self.passes.values(self.row.subject.label, key)))

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens over seconds."""
        tokens, seconds = self.passes.values(
            self.row.subject.label, "tokens", "decode_seconds"
        ).sum(axis=0)
        return float(tokens / seconds)

    @property
    def figures(self) -> dict[str, float]:
        """Its speeds as metrics of a row; seconds, tokens per second, and ratios."""
        return {
            "tokens_per_second": self.tokens_per_second,
            "prefill_seconds": self.mean("prefill_seconds"),
            "decode_speedup": self.decode.value,
            "prefill_speedup": self.prefill.value,
        }


def gather_speeds(timed: Sequence[Speeds], rows: Sequence[Row], resamples: int) -> list[Speedup]:
    """Speeds of all measured models, in the order of the rows."""
    found = []
    for speeds in timed:
        by_model: dict[str, list[dict[str, object]]] = {}
        for row in sorted(speeds.read_rows("speeds.jsonl"), key=lambda row: row["id"]):
            by_model.setdefault(row["set"], []).append(row)
        dense = str(speeds.read_json("models.json")["dense"])
        passes = Paired(by_model, resamples)
        found += [Speedup(row, passes, dense) for row in rows if row.subject.label in by_model]
    return found


def speed_table(speeds: Sequence[Speedup], timed: Sequence[Speeds]) -> Table | None:
    """Time to first token and decoding speed; None without times."""
    if not timed:
        return None
    config = timed[0].manifest["config"]
    return make_table(
        speeds,
        Column("Model", lambda one: one.row.method),
        Column("Removed", lambda one: one.row.pattern),
        Column(
            f"TTFT of {config['prompt_tokens']} tokens, s",
            lambda one: one.mean("prefill_seconds"),
            ".3f",
        ),
        Column("times dense", lambda one: one.prefill, ".2f", best=max),
        Column("tokens/s", lambda one: one.tokens_per_second, ".1f"),
        Column("times dense", lambda one: one.decode, ".2f", best=max),
        Column("Parameters, M", lambda one: one.row.subject.sizes["parameters"] / 1e6),
        Column("distinct pairs, %", lambda one: one.mean("distinct"), ".0%"),
        note="Same loop, prompts, packed bfloat16 weights where the machine has them; "
        f"{config['new_tokens']} tokens are decoded after each prompt; the models take turns in "
        "one process. 95 % intervals over rounds. Distinct pairs: of the tokens decoded greedily; "
        "few mean that the model repeats itself.",
        ranked=lambda one: one.row.pattern != "",
    )
