"""Record what a model predicts on some windows, for models that are compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from effllm.modules.ranges import Dtype, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.statistics import TeacherRecord
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.evaluation.divergence import Divergence


@dataclass(frozen=True, kw_only=True)
class RecordTeacher(Stage):
    """Log-probabilities of the likeliest tokens at every position.

    Args:
        divergence: what they will be used for; see `effllm.modules.evaluation.divergence`.
        top_k: tokens per position.
        dtype: of the forward passes.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "windows": Windows}
    OUTPUT: ClassVar = TeacherRecord

    divergence: Divergence
    top_k: PositiveInt
    dtype: Dtype

    def run(self, ctx: StageContext) -> Metrics:
        """`teacher.safetensors` and `teacher.json`."""
        from effllm.modules.evaluation.divergence import record_teacher

        windows = ctx.input("windows", Windows).token_ids()
        teachers = record_teacher(
            ctx.input("model", Checkpoint).load_model(self.dtype, ctx.device),
            windows,
            kind=self.divergence,
            top_k=self.top_k,
            progress=lambda done: ctx.progress(done, len(windows), "window"),
        )
        TeacherRecord.write(ctx.workdir, teachers)
        return {
            "kind": teachers[0].kind,
            "tokens_per_position": teachers[0].log_probs.shape[-1],
        }
