"""The part of SDS that is trained by gradient: the literal text of the paper.

Mini-batches of activations, autograd, a learning rate, 200 epochs. `redense.ProximalGradient` and
`adjust.HardThresholding` are no training: they solve a matrix from its Gram matrix, without tokens,
batches or a loss by the step, so that a stage calls them in a loop over blocks.
"""

import lightning as L
import torch
from torch import Tensor, nn

from effllm.modules.errors import NumericalError
from effllm.modules.training import OptimizerFactory


class ActivationRegrowth(L.LightningModule):
    """Distil one decoder block's linear layers from activations, under sparse regularisation.

    Minimises, for each layer, ||(W0 - W) x||^2 averaged over tokens + l1 * g * w * ||W||_1
    + l2 * g * ||W||_F^2 with g = mean input energy and w = mean|W0|, so that the weights of the
    penalties mean the same as in the Gram solver with `space: raw`.

    Args:
        originals: (R, C) W0 per layer name.
        starts: (R, C) start per layer name.
        groups: layers with the same input, by name; the first names the group's activations.
        energies: mean input energy per group (first name).
        l1_weight: scale-free L1 penalty.
        l2_weight: scale-free squared L2 penalty.
        optimizer: factory, called with the parameters.

    Source: SDS (arXiv:2408.10473) eq. 3, second-hand: 200 epochs, learning rate 0.1; the paper
        names no optimiser, batch size or normalisation.
    """

    def __init__(
        self,
        *,
        originals: dict[str, Tensor],
        starts: dict[str, Tensor],
        groups: list[list[str]],
        energies: dict[str, float],
        l1_weight: float,
        l2_weight: float,
        optimizer: OptimizerFactory,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.names = list(originals)
        # A ParameterDict refuses dots in names, so layers go by position.
        self.weights = nn.ParameterList([nn.Parameter(starts[name].float()) for name in self.names])
        for index, name in enumerate(self.names):
            self.register_buffer(f"original_{index}", originals[name].float(), persistent=False)
        self.energies = energies
        self.l1_weight, self.l2_weight = l1_weight, l2_weight
        self.optimizer = optimizer

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Loss on (b, C) activations per group, summed over the layers."""
        loss = torch.zeros((), device=self.device)
        for group, inputs in zip(self.groups, batch, strict=True):
            for name in group:
                loss = loss + self._layer_loss(name, inputs, self.energies[group[0]])
        self.log("loss", loss)
        return loss

    def _layer_loss(self, name: str, inputs: Tensor, energy: float) -> Tensor:
        index = self.names.index(name)
        weight, original = self.weights[index], self.get_buffer(f"original_{index}")
        error = (inputs @ (original - weight).T).square().sum(dim=1).mean()
        level = energy * float(original.abs().mean())
        l1 = self.l1_weight * level * weight.abs().sum()
        return error + l1 + self.l2_weight * energy * weight.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser that the configuration names."""
        return self.optimizer(self.parameters())

    def result(self) -> dict[str, Tensor]:
        """(R, C) float32 per layer name.

        Raises:
            NumericalError: if training diverged; names the layer.
        """
        found = {
            name: weight.detach() for name, weight in zip(self.names, self.weights, strict=True)
        }
        for name, weight in found.items():
            if not torch.isfinite(weight).all():
                raise NumericalError(f"layer {name} diverged; lower optimizer.lr")
        return found
