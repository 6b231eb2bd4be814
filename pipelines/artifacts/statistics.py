"""Statistics of layers, and what the dense model said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.files import link_or_copy, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.evaluation.divergence import Teacher
    from effllm.pipelines.artifacts.checkpoints import Checkpoint

GRAM_FOLDER = "gram"
"""Where a checkpoint keeps Gram matrices that were gathered while it was made."""


class Grams(Artifact):
    """Input Gram matrices of every prunable layer, one file per decoder block."""

    kind = "grams"

    @staticmethod
    def write(
        folder: Path,
        blocks: Iterable[Path],
        groups: Sequence[Sequence[Sequence[str]]],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Write the files of Gram matrices.

        Args:
            folder: of the stage, or `GRAM_FOLDER` in that of a checkpoint.
            blocks: a file per block, (C, C) float32 of the first layer of each group; linked.
            groups: per block, the layers that read the same inputs.
            checkpoint: the model whose inputs they hold; None inside of its own folder.
        """
        for index, file in enumerate(blocks):
            link_or_copy(file, folder / f"block-{index:03d}.safetensors")
        write_json(folder / "groups.json", groups)
        if checkpoint is not None:
            write_json(folder / "subject.json", {"checkpoint": checkpoint.label})

    @property
    def subject(self) -> str:
        """Label of the model whose inputs they hold."""
        return str(self.read_json("subject.json")["checkpoint"])

    def block(self, index: int) -> dict[str, Tensor]:
        """(C, C) float32 per layer name of one block; layers with equal inputs share it."""
        from safetensors.torch import load_file

        stored = load_file(self.path / f"block-{index:03d}.safetensors")
        groups = self.read_json("groups.json")[index]
        return {name: stored[group[0]] for group in groups for name in group}


class TeacherRecord(Artifact):
    """A model's likeliest tokens at every position of some windows."""

    kind = "teacher"

    @staticmethod
    def write(folder: Path, teachers: Sequence[Teacher]) -> None:
        """Write the files of a record; all teachers are of one kind."""
        import torch
        from safetensors.torch import save_file

        tensors = {"log_probs": torch.stack([teacher.log_probs for teacher in teachers])}
        ids = [teacher.ids for teacher in teachers if teacher.ids is not None]
        if ids:
            tensors["ids"] = torch.stack(ids)
        save_file(tensors, folder / "teacher.safetensors")
        write_json(folder / "teacher.json", {"kind": teachers[0].kind})

    def teachers(self) -> list[Teacher]:
        """One per window."""
        from safetensors.torch import load_file

        from effllm.modules.evaluation.divergence import Teacher

        stored, kind = load_file(self.path / "teacher.safetensors"), self.read_json("teacher.json")
        ids = stored.get("ids")
        return [
            Teacher(kind["kind"], None if ids is None else ids[number], log_probs)
            for number, log_probs in enumerate(stored["log_probs"])
        ]
