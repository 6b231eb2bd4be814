"""Measurements and reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.files import write_json, write_rows

if TYPE_CHECKING:
    from effllm.pipelines.artifacts.checkpoints import Checkpoint


class Predictions(Artifact):
    """Per-example results of one model, so that models can be compared pair by pair.

    `predictions.jsonl` has one object per example: `{"set", "id", ...values}`; `subject.json`
    has the history of the model that was measured.
    """

    kind = "predictions"

    @staticmethod
    def write(
        folder: Path, rows: Iterable[Mapping[str, Any]], checkpoint: Checkpoint, **more: Any
    ) -> None:
        """Write the files of predictions.

        Args:
            folder: of the stage.
            rows: one per example.
            checkpoint: the model that was measured.
            more: what else is to be known of it, as plain data.
        """
        write_rows(folder / "predictions.jsonl", rows)
        subject = {"checkpoint": checkpoint.label, "history": checkpoint.history, **more}
        write_json(folder / "subject.json", subject)

    @property
    def subject(self) -> dict[str, Any]:
        """`{"checkpoint": <label>, "history": [...]}` of the measured model."""
        return dict(self.read_json("subject.json"))

    def rows(self) -> list[dict[str, Any]]:
        """One object per example."""
        return self.read_rows("predictions.jsonl")


class Speeds(Artifact):
    """Times of models that took turns: `speeds.jsonl`, one round of one model per line.

    `models.json` has the history of each.
    """

    kind = "speeds"

    @staticmethod
    def write(
        folder: Path,
        rows: Iterable[Mapping[str, Any]],
        dense: Checkpoint,
        models: Iterable[Checkpoint],
    ) -> None:
        """Write the files of speeds; `models` hold the dense one, too."""
        write_rows(folder / "speeds.jsonl", rows)
        histories = {model.label: model.history for model in models}
        write_json(folder / "models.json", {"dense": dense.label, "models": histories})


class Report(Artifact):
    """A self-contained page with its tables and figures."""

    kind = "report"
