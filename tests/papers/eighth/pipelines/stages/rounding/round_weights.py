"""Rounding of every linear layer in the decoder blocks."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.ranges import Dtype, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class RoundWeights(Stage):
    """Round a model's weights to the nearest points of a grid.

    Args:
        bits: of a weight.
        dtype: of the stored weights.
    """

    INPUTS: ClassVar = {"model": Checkpoint}
    OUTPUT: ClassVar = Checkpoint

    bits: PositiveInt
    dtype: Dtype

    def run(self, ctx: StageContext) -> Metrics:
        """Rounded checkpoint."""
        from effllm.modules.modeling.blocks import prunable_layers
        from effllm.modules.rounding.nearest import round_to_nearest

        checkpoint = ctx.input("model", Checkpoint)
        model = checkpoint.load_model(self.dtype, ctx.device)
        layers = prunable_layers(model)
        for layer in layers.values():
            layer.write(round_to_nearest(layer.read(), self.bits))
        step = {"stage": "round_weights", "bits": self.bits}
        Checkpoint.write(
            ctx.workdir, model, checkpoint.load_tokenizer(), [*checkpoint.history, step]
        )
        return {"layers": len(layers)}
