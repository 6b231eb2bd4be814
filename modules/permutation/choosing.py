"""A choice among orders that are there already, for every site, learned through the whole model.

Searches of single sites know the layer's own loss alone. Which search's order a site should take is
decided here by what the whole model loses: KL(dense || pruned) on calibration text. A step draws a
hard choice for every site and takes the gradient of the soft one (straight-through Gumbel-softmax):

    c_s = onehot(argmax_k a_sk + g_sk),   W'_l = W_l . sum_k c_sk M_lk,
    dc_s / da_s = d softmax(a_s + g_s) / da_s

with one number a_sk for a site and an order. Weights never change.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from effllm.modules.permutation.sites import Site, assemble
from effllm.modules.permutation.substituting import Substitute, divergence
from effllm.modules.training import OptimizerFactory


class OrderChoice(L.LightningModule):
    """Which of several orders each site takes.

    Args:
        model: the dense model; neither trained nor saved.
        sites: each with all columns of its layers.
        masks: per order, (R, C) bool of every layer, `<block>.<name>`.
        optimizer: factory of the optimiser.
        steps: of the training.
        check_every: steps between looks at the likeliest choice on `heldout`; the best is kept, the
            first order everywhere among them.
        heldout: batches of (b, T) token ids.
        lead: of the first order, before any step: a logit.
        seed: of the draws; each step has its own.

    Source: straight-through Gumbel-softmax (arXiv:1611.01144); its use for orders is ours.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        masks: Sequence[Mapping[str, Tensor]],
        optimizer: OptimizerFactory,
        *,
        steps: int,
        check_every: int,
        heldout: Sequence[Tensor],
        lead: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.preferences = nn.Parameter(torch.zeros(len(sites), len(masks)))
        with torch.no_grad():
            self.preferences[:, 0] += lead
        self.held = [Substitute(model)]  # in a list: not part of this module
        self.sites, self.masks, self.optimizer = list(sites), list(masks), optimizer
        self.steps, self.check_every, self.heldout = steps, check_every, list(heldout)
        self.seed = seed
        self.best_loss: float | None = None
        self.best_choice = torch.zeros(len(sites), dtype=torch.long)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Loss of a drawn choice on (b, T) token ids."""
        (tokens,) = batch
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.global_step)
        uniform = torch.rand(self.preferences.shape, generator=generator).clamp(1e-9, 1 - 1e-9)
        drawn = self.preferences - (-uniform.log()).log().to(self.preferences.device)
        soft = drawn.softmax(dim=1)
        hard = functional.one_hot(drawn.argmax(dim=1), soft.shape[1])
        loss = self.loss(tokens, hard + soft - soft.detach())
        self.log("loss", loss)
        return loss

    def loss(self, tokens: Tensor, share: Tensor) -> Tensor:
        """KL(dense || pruned) per token, with (S, K) shares of the orders at every site."""
        (model,) = self.held
        pieces: list[list[Tensor]] = []
        for site, shares in zip(self.sites, share, strict=True):
            pieces.append([])
            for member in site.members:
                weight = model.layers[member.layer].read()
                for columns in member.columns:
                    kept = torch.stack([masks[member.layer][:, columns] for masks in self.masks])
                    mixed = torch.einsum("k,krc->rc", shares, kept.to(shares.dtype))
                    pieces[-1].append(weight[:, columns] * mixed)
        with torch.no_grad():
            dense = model.logits(tokens)
        return divergence(dense, model.logits(tokens, assemble(self.sites, pieces)))

    @torch.no_grad()
    def look(self, choice: Tensor) -> float:
        """Held-out loss of a (S,) choice; the best that was looked at is kept."""
        share = functional.one_hot(choice, self.preferences.shape[1]).float()
        losses = [float(self.loss(tokens, share)) for tokens in self.heldout]
        loss = sum(losses) / len(losses)
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_choice = loss, choice.clone()
        return loss

    def on_train_start(self) -> None:
        """The first order everywhere is the first to be looked at."""
        if self.best_loss is None:
            self.look(torch.zeros(len(self.sites), dtype=torch.long))

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Look at the likeliest choice."""
        if self.global_step % self.check_every == 0 or self.global_step == self.steps:
            self.log("heldout_loss", self.look(self.preferences.argmax(dim=1)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The best choice goes with the preferences."""
        checkpoint["best_loss"], checkpoint["best_choice"] = self.best_loss, self.best_choice

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As saved."""
        self.best_loss, self.best_choice = checkpoint["best_loss"], checkpoint["best_choice"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The configured optimiser."""
        return self.optimizer([self.preferences])
