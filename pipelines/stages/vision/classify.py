"""Accuracy of a classifier of pictures."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.ranges import Dtype, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Images
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class Classify(Stage):
    """Right and wrong, picture by picture; held-out serves choices, test serves reports.

    Args:
        dtype: of the passes.
        micro_batch_size: pictures per pass.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "heldout": Images, "test": Images}
    OUTPUT: ClassVar = Predictions
    VOLATILE: ClassVar = frozenset({"micro_batch_size"})

    dtype: Dtype
    micro_batch_size: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """One row per picture: set, id, whether its class was right."""
        from effllm.modules.vision.classifier import guesses

        checkpoint = ctx.input("model", Checkpoint)
        model = checkpoint.load_model(self.dtype, ctx.device)
        rows: list[dict[str, object]] = []
        metrics: Metrics = {}
        for role in ("heldout", "test"):
            images = ctx.input(role, Images)
            found = guesses(model, images.model_inputs(), batch_size=self.micro_batch_size)
            right = (found == images.labels()).tolist()
            metrics[f"{role}/{images.protocol}/accuracy"] = sum(right) / len(right)
            rows += [
                {"set": role, "id": number, "correct": one} for number, one in enumerate(right)
            ]
        Predictions.write(ctx.workdir, rows, checkpoint)
        return metrics
