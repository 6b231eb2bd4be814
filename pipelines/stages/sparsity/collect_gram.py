"""Measure the inputs of every prunable layer once, for all layer-wise methods to share."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.ranges import Dtype, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.stage import Metrics, Stage, StageContext
from effllm.pipelines.stages.blockwise import (
    gram_files,
    gram_name,
    resume_stream,
    save_stream,
)


@dataclass(frozen=True, kw_only=True)
class CollectGram(Stage):
    """Gram matrices X X^T / N of the model's own activations, block by block.

    Args:
        dtype: of the forward passes; statistics are float32 always.
        micro_batch_size: windows per forward pass.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "windows": Windows}
    OUTPUT: ClassVar = Grams
    VOLATILE: ClassVar = frozenset({"micro_batch_size"})

    dtype: Dtype
    micro_batch_size: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """One file per block; resumes at the block that was interrupted."""
        from effllm.modules.calibration.statistics import Gram
        from effllm.modules.calibration.stream import BlockStream

        checkpoint = ctx.input("model", Checkpoint)
        model = checkpoint.load_model(self.dtype, ctx.device)
        windows = ctx.input("windows", Windows).model_inputs()
        stream = BlockStream(model, windows, self.micro_batch_size)
        for index in range(resume_stream(ctx, stream), len(stream.blocks)):
            leaders = [group[0] for group in stream.groups()]
            grams = stream.collect(Gram, advance=True)
            ctx.save_progress(gram_name(index), {name: grams[name].cpu() for name in leaders})
            save_stream(ctx, stream)
        files = gram_files(ctx, len(stream.blocks))
        Grams.write(ctx.workdir, files, stream.all_groups(), checkpoint)
        return {"tokens": windows.numel(), "blocks": len(stream.blocks)}
