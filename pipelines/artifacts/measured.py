"""Measurements and reports."""

from __future__ import annotations

from typing import Any

from effllm.pipelines.artifacts.base import Artifact


class Predictions(Artifact):
    """Per-example results of one model, so that models can be compared pair by pair.

    `predictions.jsonl` has one object per example: `{"set", "id", ...values}`; `subject.json`
    has the history of the model that was measured.
    """

    kind = "predictions"

    @property
    def subject(self) -> dict[str, Any]:
        """`{"checkpoint": <label>, "history": [...]}` of the measured model."""
        return dict(self.read_json("subject.json"))

    def rows(self) -> list[dict[str, Any]]:
        """One object per example."""
        return self.read_rows("predictions.jsonl")


class Speeds(Artifact):
    """Times of several models on the same passes: `speeds.jsonl`, one pass per line."""

    kind = "speeds"


class Report(Artifact):
    """A self-contained page with its tables and figures."""

    kind = "report"
