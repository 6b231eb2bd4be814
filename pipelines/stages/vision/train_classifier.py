"""A small vision transformer, trained from random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.ranges import PositiveInt, Seed
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Images
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.training import TrainingStage


@dataclass(frozen=True, kw_only=True)
class TrainClassifier(TrainingStage):
    """Train a ViT to tell digits apart.

    Args:
        layers: blocks.
        width: hidden size.
        heads: of attention.
        epochs: passes over the pictures.
        batch_images: pictures of a step.
        seed: of weights and order.
    """

    INPUTS: ClassVar = {"images": Images}
    OUTPUT: ClassVar = Checkpoint

    layers: PositiveInt
    width: PositiveInt
    heads: PositiveInt
    epochs: PositiveInt
    batch_images: PositiveInt
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """A checkpoint without a tokenizer, and the curve of its training."""
        from effllm.modules.vision.classifier import ClassifierTraining, digit_classifier

        images = ctx.input("images", Images)
        model = digit_classifier(
            layers=self.layers, width=self.width, heads=self.heads, seed=self.seed
        )
        self.fit(
            ctx,
            ClassifierTraining(model.train(), self.optimizer),
            curve="curve.csv",
            epochs=self.epochs,
            tensors=[images.model_inputs(), images.labels()],
            batch_size=self.batch_images,
            seed=self.seed,
        )
        step = {"stage": "train_classifier", "pictures": images.protocol}
        Checkpoint.write(ctx.workdir, model.cpu().eval(), None, [step])
        return {"parameters": sum(one.numel() for one in model.parameters())}
