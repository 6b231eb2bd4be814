"""How far a model's predictions are from the dense model's, and how much smaller it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.errors import DataError
from effllm.modules.ranges import Dtype
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.artifacts.statistics import TeacherRecord
from effllm.pipelines.files import write_json
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class CompareDense(Stage):
    """KL divergence per window; counted parameters, file size, cache per token.

    Args:
        dtype: of the forward passes.
    """

    VERSION: ClassVar[int] = 2  # 2: rows name their documents
    INPUTS: ClassVar = {"model": Checkpoint, "teacher": TeacherRecord, "windows": Windows}
    OUTPUT: ClassVar = Predictions

    dtype: Dtype

    def run(self, ctx: StageContext) -> Metrics:
        """One row per window: set, protocol, document, nats per token; `sizes.json`."""
        from effllm.modules.evaluation.divergence import window_divergence
        from effllm.modules.structural.sizes import cache_bytes_per_token, count_parameters

        checkpoint = ctx.input("model", Checkpoint)
        windows = ctx.input("windows", Windows)
        teachers, token_ids = ctx.input("teacher", TeacherRecord).teachers(), windows.token_ids()
        if len(teachers) != len(token_ids):
            raise DataError(
                f"the teacher was recorded on {len(teachers)} windows, found "
                f"{len(token_ids)}; link the windows that it read"
            )
        model = checkpoint.load_model(self.dtype, ctx.device)
        values = window_divergence(
            model,
            teachers,
            token_ids,
            progress=lambda done: ctx.progress(done, len(token_ids), "window"),
        )
        Predictions.write(ctx.workdir, windows.rows("kl", "kl", values), checkpoint)
        every, inside = count_parameters(model)
        sizes = {
            "parameters": every,
            "block_parameters": inside,
            "weight_file_bytes": sum(
                one.stat().st_size for one in checkpoint.path.glob("*.safetensors")
            ),
            "cache_bytes_per_token": cache_bytes_per_token(model),
        }
        write_json(ctx.workdir / "sizes.json", sizes)
        return {f"{windows.protocol}/kl": float(values.mean()), **sizes}
