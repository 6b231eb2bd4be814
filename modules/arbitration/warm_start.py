"""Warm start: tell forks that win a problem from forks that lose one."""

import lightning as L
import torch
from torch import Tensor

from effllm.modules.arbitration.policy import Policy
from effllm.modules.training import OptimizerFactory


class WarmStart(L.LightningModule):
    """Logistic regression, or a small network, on labelled forks.

    Args:
        policy: whose scores are fitted.
        optimizer: factory, called with the policy's parameters.
    """

    def __init__(self, policy: Policy, optimizer: OptimizerFactory) -> None:
        super().__init__()
        self.policy, self.optimizer = policy, optimizer

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Binary cross-entropy of (B, F) observations and (B,) labels."""
        observations, labels = batch
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            self.policy(observations), labels
        )
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The configured optimiser."""
        return self.optimizer(list(self.policy.parameters()))
