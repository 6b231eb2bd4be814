"""A vision transformer small enough to be trained in a minute, and its training."""

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from effllm.modules.training import OptimizerFactory, rising_then_falling
from effllm.modules.vision.digits import CLASSES, SIDE


def digit_classifier(*, layers: int, width: int, heads: int, seed: int) -> PreTrainedModel:
    """An untrained ViT for the digits: patches of 2 x 2, an MLP four times as wide."""
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=SIDE,
        patch_size=2,
        num_channels=1,
    )
    config.num_labels = CLASSES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


class ClassifierTraining(L.LightningModule):
    """Train a classifier of pictures by cross-entropy.

    Args:
        model: gives logits for `pixel_values`.
        optimizer: factory, called with its parameters.
        warmup: share of all steps with a rising learning rate; then it falls as a cosine.
    """

    def __init__(
        self, model: PreTrainedModel, optimizer: OptimizerFactory, warmup: float = 0.1
    ) -> None:
        super().__init__()
        self.model, self.optimizer, self.warmup = model, optimizer, warmup

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Loss of (B, channels, height, width) pictures and their (B,) classes."""
        pixels, labels = batch
        logits = self.model(pixel_values=pixels).logits.float()
        loss = cross_entropy(logits, labels)
        self.log("loss", loss.detach())
        self.log("accuracy", (logits.argmax(dim=-1) == labels).float().mean())
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The configured optimiser under a rising, then falling learning rate."""
        steps = int(self.trainer.estimated_stepping_batches)
        return rising_then_falling(
            self.optimizer(self.parameters()), steps=steps, warmup=self.warmup
        )


@torch.no_grad()
def guesses(model: PreTrainedModel, pixels: Tensor, *, batch_size: int) -> Tensor:
    """(N,) int64 classes that a model takes pictures for.

    Args:
        model: gives logits for `pixel_values`.
        pixels: (N, channels, height, width).
        batch_size: pictures per pass.
    """
    found = [
        model(pixel_values=batch.to(model.device, model.dtype)).logits.argmax(dim=-1).cpu()
        for batch in pixels.split(batch_size)
    ]
    return torch.cat(found)
