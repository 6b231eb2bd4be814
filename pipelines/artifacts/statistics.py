"""Statistics of layers, and what the dense model said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllm.pipelines.artifacts.base import Artifact

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.evaluation.divergence import Teacher


class Grams(Artifact):
    """Input Gram matrices of every prunable layer, one file per decoder block."""

    kind = "grams"

    def block(self, index: int) -> dict[str, Tensor]:
        """(C, C) float32 per layer name of one block; layers with equal inputs share it."""
        from safetensors.torch import load_file

        stored = load_file(self.path / f"block-{index:03d}.safetensors")
        groups = self.read_json("groups.json")[index]
        return {name: stored[group[0]] for group in groups for name in group}


class TeacherRecord(Artifact):
    """A model's likeliest tokens at every position of some windows."""

    kind = "teacher"

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
