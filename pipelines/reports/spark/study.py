"""One evaluation of compressed caches: its arms on texts and on long prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.paired import Paired, Rows
from effllm.pipelines.reports.spark.names import About, arm_title

FLOOR = 0.2  # score of the full cache below which a task says nothing; RULER-like tasks, ours


@dataclass(frozen=True)
class Study:
    """Rows of one evaluation, arm by arm.

    Attributes:
        texts: windows of text.
        prompts: long prompts that the full cache can do.
        dropped: task and length -> score of the full cache, for those that it cannot.
        about: arm -> what it is.
        settings: of the evaluation.
        conditions: of the run that differ from the paper's.
    """

    texts: Paired
    prompts: Paired
    dropped: dict[tuple[str, int], float]
    about: dict[str, About]
    settings: dict[str, Any]
    conditions: tuple[str, ...] = ()

    @classmethod
    def of(cls, evaluated: Artifact, resamples: int, conditions: tuple[str, ...] = ()) -> Study:
        """Read an evaluation and set tasks aside that the full cache fails."""
        settings = evaluated.read_json("arms.json")
        about = settings.pop("arms")
        texts: dict[str, Rows] = {name: [] for name in about}
        prompts: dict[str, Rows] = {name: [] for name in about}
        for row in evaluated.read_rows("predictions.jsonl"):
            (texts if row["group"] == "text" else prompts)[row["set"]].append(row)
        scores: dict[tuple[str, int], list[float]] = {}
        for row in prompts["dense"]:
            scores.setdefault((row["group"], row["length"]), []).append(row["score"])
        means = {key: float(np.mean(found)) for key, found in scores.items()}
        dropped = {key: mean for key, mean in means.items() if mean < FLOOR}
        kept = {
            arm: [row for row in rows if (row["group"], row["length"]) not in dropped]
            for arm, rows in prompts.items()
        }
        return cls(
            Paired(texts, resamples), Paired(kept, resamples), dropped, about, settings, conditions
        )

    def title(self, arm: str) -> str:
        """Name of an arm."""
        return arm_title(self.about[arm])

    def has(self, *arms: str) -> bool:
        """Whether all of some arms ran."""
        return self.about.keys() >= set(arms)

    @property
    def prompted(self) -> int:
        """Long prompts that count."""
        return len(self.prompts.arms["dense"])

    def bytes_per_token(self, arm: str) -> float:
        """Bytes held per token of the context, all layers, over the texts if there are any."""
        rows = self.texts.arms[arm] or self.prompts.arms[arm]
        return float(sum(row["bytes"] for row in rows) / sum(row["context_tokens"] for row in rows))

    def bytes_ratio(self, arm: str, other: str) -> float:
        """Bytes of one arm over those of another."""
        return self.bytes_per_token(arm) / self.bytes_per_token(other)

    def saving(self, arm: str) -> float:
        """Share of the full cache's bytes that an arm does not hold."""
        return 1 - self.bytes_ratio(arm, "dense")

    def score(self, arm: str) -> Interval | None:
        """Share of right answers; None without prompts."""
        return self.prompts.mean(arm, "score") if self.prompted else None

    def score_change(self, arm: str, other: str) -> Interval | None:
        """Difference in right answers to the same prompts; None without any."""
        return self.prompts.change(arm, other, "score") if self.prompted else None

    def perplexity_change(self, arm: str, other: str) -> Interval:
        """Relative change of perplexity."""
        return self.texts.change(arm, other, "nll", transform=np.expm1)
