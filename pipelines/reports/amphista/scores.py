"""Scores of all arms, text by text: means over training seeds, pairs on the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from effllm.modules.errors import DataError
from effllm.modules.evaluation.intervals import Interval, estimate, over_seeds
from effllm.pipelines.artifacts.heads import Heads, HeadScores
from effllm.pipelines.reports.decoders.naming import head_title
from effllm.pipelines.reports.results import Results

AMPHISTA, MEDUSA, TOKEN = "Amphista", "Medusa-1", "Medusa + chosen token"


@dataclass(frozen=True)
class Trained:
    """One drafter of one training seed.

    Attributes:
        heads: the trained heads.
        scores: what they are worth on test texts.
    """

    heads: Heads
    scores: HeadScores

    @property
    def seed(self) -> int:
        """Of its training."""
        return int(self.heads.manifest["config"]["seed"])

    @property
    def title(self) -> str:
        """What it is, read off its class and settings."""
        about = self.heads.about
        return head_title(about["class"], about["settings"])


@dataclass(frozen=True)
class Study:
    """All arms of a run, each with its training seeds.

    Attributes:
        arms: title -> one drafter per seed.
        resamples: of the bootstrap.
    """

    arms: dict[str, list[Trained]]
    resamples: int

    @classmethod
    def of(cls, results: Results, resamples: int) -> Study:
        """Pair scores with their heads.

        Raises:
            DataError: if arms were judged on different texts, or there are none.
        """
        arms: dict[str, list[Trained]] = {}
        results.first("evaluate_heads")
        for scores in results.of(HeadScores):
            trained = Trained(results.input(scores, "heads", Heads), scores)
            arms.setdefault(trained.title, []).append(trained)
        for mine in arms.values():
            mine.sort(key=lambda one: one.seed)
        study = cls(arms, resamples)
        places = {tuple(row["positions"] for row in one.scores.rows()) for one in study.drafters}
        if len(places) != 1:
            raise DataError(
                "report: drafters were judged on different texts and cannot be compared; give all "
                "stages evaluate_heads the same states"
            )
        return study

    @property
    def drafters(self) -> list[Trained]:
        """Every drafter of every seed."""
        return [one for mine in self.arms.values() for one in mine]

    @property
    def nodes(self) -> list[int]:
        """Sizes of trees."""
        return list(self.drafters[0].scores.trees())

    @property
    def heads(self) -> int:
        """Heads of each drafter."""
        return int(self.drafters[0].heads.about["settings"]["heads"])

    @property
    def matched(self) -> str | None:
        """The Medusa that was made as large as Amphista, if one ran."""
        return next((one for one in self.arms if one.startswith("Medusa, ")), None)

    @property
    def texts(self) -> int:
        """Test texts."""
        return len(self.drafters[0].scores.rows())

    def seeds(self, *arms: str) -> list[int]:
        """Training seeds that all of some arms have."""
        found = [{one.seed for one in self.arms[arm]} for arm in arms]
        return sorted(set.intersection(*found))

    def tau(self, arm: str, nodes: int) -> Interval:
        """Tokens per pass, mean over seeds, with its interval over texts."""
        values = self._sums(arm, nodes, self.seeds(arm))
        return estimate(
            values, transform=lambda m: 1 + m[..., 0] / m[..., 1], resamples=self.resamples
        )

    def gain(self, arm: str, other: str, nodes: int) -> Interval:
        """Tokens per pass over another arm's, paired by text and seed.

        Its ends are the outer ones of two intervals, over texts and, where both arms have several
        seeds, over seeds.
        """
        seeds = self.seeds(arm, other)
        both = [self._sums(one, nodes, seeds) for one in (arm, other)]
        values = np.concatenate(both, axis=1)
        found = estimate(
            values,
            transform=lambda m: (m[..., 0] - m[..., 2]) / m[..., 1],
            resamples=self.resamples,
        )
        if len(seeds) < 2 or not found.known:
            return found
        spread = over_seeds(self._gains_by_seed(arm, other, nodes))
        return Interval(found.value, min(found.low, spread.low), max(found.high, spread.high))

    def seed_margin(self, nodes: int) -> float:
        """Twice the standard deviation over seeds of Amphista's gain over Medusa; 0 without seeds.

        What a gain must clear that was measured with one seed.
        """
        pair = (AMPHISTA, MEDUSA)
        if not all(arm in self.arms for arm in pair) or len(self.seeds(*pair)) < 2:
            return 0.0
        return 2 * float(np.std(self._gains_by_seed(*pair, nodes), ddof=1))

    def right(self, arm: str, head: int, *, among: int = 1) -> Interval:
        """Share of positions where a head's first guess, or one of its first five, is true."""
        key = {1: "top1", 5: "top5"}[among]
        per_seed = [
            [[row[key][head - 1], row["positions"]] for row in one.scores.rows()]
            for one in self.arms[arm]
        ]
        return estimate(
            np.mean(np.array(per_seed, dtype=np.float64), axis=0),
            transform=lambda m: m[..., 0] / m[..., 1],
            bounds=(0, 1),
            resamples=self.resamples,
        )

    def metric(self, arm: str, key: str) -> float:
        """Mean over seeds of a figure of the judgement."""
        return float(np.mean([one.scores.manifest["metrics"][key] for one in self.arms[arm]]))

    def parameters(self, arm: str) -> int:
        """Trained parameters."""
        return int(self.arms[arm][0].heads.about["parameters"])

    def training_seconds(self, arm: str) -> float:
        """Mean over seeds."""
        times = [one.heads.manifest["timing"]["seconds"] for one in self.arms[arm]]
        return float(np.mean(times))

    def _sums(self, arm: str, nodes: int, seeds: Sequence[int]) -> np.ndarray:
        """(texts, 2): accepted guesses, mean over seeds, and positions."""
        chosen: list[list[dict[str, Any]]] = [
            one.scores.rows() for one in self.arms[arm] if one.seed in seeds
        ]
        accepted = np.mean(
            [[row["accepted"][str(nodes)] for row in rows] for rows in chosen], axis=0
        )
        return np.stack([accepted, [row["positions"] for row in chosen[0]]], axis=1)

    def _gains_by_seed(self, arm: str, other: str, nodes: int) -> np.ndarray:
        found = []
        for seed in self.seeds(arm, other):
            mine, theirs = (self._sums(one, nodes, [seed]).sum(axis=0) for one in (arm, other))
            found.append((mine[0] - theirs[0]) / mine[1])
        return np.array(found)
