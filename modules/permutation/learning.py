"""Orders that are learned: a cost matrix per block of channels, trained against a loss.

`LayerLearning` trains the order of one site on the output error of its layers, which needs no
forward pass. `ModelLearning` trains the orders of all sites at once through the whole model, as
the paper and PermLLM do. Weights never change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from effllm.modules.errors import ConfigError
from effllm.modules.permutation.gradients import Mode, prune_hard, prune_soft, refine
from effllm.modules.permutation.matching import assign, normalised, sinkhorn
from effllm.modules.permutation.orders import canonical, ordered_mask
from effllm.modules.permutation.problem import Part, Problem
from effllm.modules.permutation.sites import Site, assemble
from effllm.modules.permutation.substituting import Substitute
from effllm.modules.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from effllm.modules.sparsity.patterns import Grouped
from effllm.modules.training import OptimizerFactory

_PULL = 1.0  # towards the first order, before costs are scaled


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How costs become an order while they are learned.

    Args:
        mode: forward and backward; see `gradients`.
        groups: blocks of equal size that the channels of a site are cut into; or
        block_size: channels of a block.
        first_temperature: of Sinkhorn at the first step.
        last_temperature: at the last; in between geometric.
        noise: deviation of the first costs around the pull towards the first order.
    """

    mode: Mode
    groups: PositiveInt | None
    block_size: PositiveInt | None
    first_temperature: PositiveFloat
    last_temperature: PositiveFloat
    noise: NonNegativeFloat

    def __post_init__(self) -> None:
        if (self.groups is None) == (self.block_size is None):
            raise ValueError("give groups or block_size, and null for the other")

    def blocks(self, columns: int, pattern: Grouped, site: str) -> tuple[int, int]:
        """Number and size of a site's blocks.

        Raises:
            ConfigError: if blocks or the pattern's groups do not divide the channels.
        """
        size = self.block_size or columns // (self.groups or 1)
        size = min(size, columns)
        if columns % size or size % pattern.group:
            raise ConfigError(
                f"site {site}: {columns} channels do not divide into blocks of {size} that hold "
                f"whole groups of {pattern.group}; change matching.groups or matching.block_size"
            )
        return columns // size, size

    def temperature(self, done: float) -> float:
        """At a share of the training, 0 to 1."""
        return self.first_temperature * (self.last_temperature / self.first_temperature) ** done


class LearnableOrder(nn.Module):
    """Costs of each channel of a block in each of its slots.

    Args:
        first: (n,) order whose blocks are permuted, and that training starts from.
        blocks: number and size of the blocks.
        noise: deviation of the first costs.
        generator: draws them.
    """

    first: Tensor

    def __init__(
        self, first: Tensor, blocks: tuple[int, int], noise: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        count, size = blocks
        drawn = noise * torch.randn(count, size, size, generator=generator)
        self.costs = nn.Parameter(drawn - _PULL * torch.eye(size))
        self.register_buffer("first", first.clone())

    def prune(
        self,
        parts: Sequence[Part],
        pattern: Grouped,
        mode: Mode,
        temperature: float,
        *,
        curvature: float | None = None,
    ) -> list[Tensor]:
        """(R, n) pruned weight of each part, differentiable in the costs.

        Args:
            parts: what reads the channels.
            pattern: N:M.
            mode: see `gradients`.
            temperature: of Sinkhorn.
            curvature: second derivative of the loss, in units of the Gram matrices' diagonals.
        """
        costs = normalised(self.costs)
        plan = sinkhorn(costs, temperature)
        if mode == "soft":
            return [
                prune_soft(part.weight, part.score, plan, self.first, pattern) for part in parts
            ]
        inner = assign(costs.detach())
        return [
            prune_hard(
                part.weight,
                part.score,
                plan,
                inner,
                self.first,
                pattern,
                mode,
                None if curvature is None else curvature * part.gram.diagonal(),
            )
            for part in parts
        ]

    @torch.no_grad()
    def hardened(self, pattern: Grouped) -> Tensor:
        """(n,) canonical order of least cost."""
        inner = assign(normalised(self.costs))
        return canonical(refine(self.first, inner), pattern.group)


class LayerLearning(L.LightningModule):
    """The order of one site, learned on the output error of its layers.

    Args:
        problem: rows, scores and Gram matrices of the calibration text.
        heldout: Gram matrix of each part on other text, which chooses among the steps.
        order: where learning starts.
        matching: how costs become an order.
        optimizer: factory of the optimiser.
        steps: of the training, for temperature and learning rate.
        check_every: steps between looks at the held-out error.
    """

    best_order: Tensor
    best_error: Tensor

    def __init__(
        self,
        problem: Problem,
        heldout: Sequence[Tensor],
        order: LearnableOrder,
        matching: Matching,
        optimizer: OptimizerFactory,
        steps: int,
        check_every: int,
    ) -> None:
        super().__init__()
        self.problem, self.heldout, self.order = problem, list(heldout), order
        self.matching, self.optimizer = matching, optimizer
        self.steps, self.check_every = steps, check_every
        first = canonical(order.first, problem.pattern.group)
        self.register_buffer("best_order", first)
        self.register_buffer("best_error", torch.tensor(problem.error(first, self.heldout)))

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Relative output error of the present order."""
        matching, parts = self.matching, self.problem.parts
        temperature = matching.temperature(self.global_step / max(self.steps - 1, 1))
        pruned = self.order.prune(
            parts,
            self.problem.pattern,
            matching.mode,
            temperature,
            curvature=2 / self.problem.output,
        )
        loss = sum(
            ((one - part.weight) @ part.gram * (one - part.weight)).sum()
            for part, one in zip(parts, pruned, strict=True)
        )
        assert isinstance(loss, Tensor)
        loss = loss / self.problem.output
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Keep the order with the least held-out error."""
        if self.global_step % self.check_every and self.global_step != self.steps:
            return
        found = self.order.hardened(self.problem.pattern)
        error = self.problem.error(found, self.heldout)
        self.log("heldout_error", error)
        if error < float(self.best_error):
            self.best_order.copy_(found)
            self.best_error.fill_(error)

    def configure_optimizers(self) -> Any:
        """With a cosine decay to zero."""
        return _with_cosine(self.optimizer(self.order.parameters()), self.steps)


Loss = Literal["next_token", "hidden_state"]


class ModelLearning(L.LightningModule):
    """The orders of all sites, learned together through the whole model.

    Args:
        model: the dense model; neither trained nor saved.
        sites: of one level.
        problems: one per site, a part for each copy of each member.
        orders: one per site.
        matching: how costs become orders.
        loss: `next_token`, the paper's cross entropy with distillation; or `hidden_state`, one
            minus the cosine of the last hidden states of dense and pruned model (PermLLM).
        distillation: weight of the layers' output errors, the paper's alpha.
        optimizer: factory of the optimiser.
        steps: of the training.
        check_every: steps between looks at the loss of the hardened orders on `heldout`, of which
            the best are kept, the first ones among them; 0: the last ones are taken.
        heldout: batches of (b, T) token ids.

    Source: arXiv 2601.22980, equations 6 to 8; PermLLM (NeurIPS 2025).
    Deviates: distillation is the mean squared error of every linear layer on the dense model's
        inputs, from Gram matrices; the paper says Smooth-L1 in one place and squares in another,
        at a weight of 1e-5.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        problems: Sequence[Problem],
        orders: Sequence[LearnableOrder],
        matching: Matching,
        loss: Loss,
        distillation: float,
        optimizer: OptimizerFactory,
        steps: int,
        check_every: int = 0,
        heldout: Sequence[Tensor] = (),
    ) -> None:
        super().__init__()
        self.check_every, self.heldout = check_every, list(heldout)
        self.best_loss: float | None = None
        self.best_orders: list[Tensor] = []
        self.orders = nn.ModuleList(orders)
        self.held = [Substitute(model)]  # in a list: not part of this module
        self.sites, self.problems = list(sites), list(problems)
        self.matching, self.loss, self.distillation = matching, loss, distillation
        self.optimizer, self.steps = optimizer, steps

    def pruned_weights(self, temperature: float) -> tuple[dict[str, Tensor], Tensor]:
        """(R, C) pruned weight of each layer, `<block>.<name>`; the sum of their output errors."""
        pieces = []
        errors = torch.zeros(())
        for problem, order in zip(self.problems, self.orders, strict=True):
            assert isinstance(order, LearnableOrder)
            pruned = order.prune(problem.parts, problem.pattern, self.matching.mode, temperature)
            pieces.append(pruned)
            if self.distillation:
                for part, one in zip(problem.parts, pruned, strict=True):
                    lost = one - part.weight
                    errors = errors + (lost @ part.gram * lost).sum() / len(lost)
        return assemble(self.sites, pieces), errors

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Loss of the pruned model on (b, T) token ids."""
        (tokens,) = batch
        done = self.global_step / max(self.steps - 1, 1)
        weights, errors = self.pruned_weights(self.matching.temperature(done))
        loss = self.model_loss(tokens, weights) + self.distillation * errors
        self.log("loss", loss)
        return loss

    def on_train_start(self) -> None:
        """The orders that learning starts from are the first to be looked at."""
        if self.check_every and self.best_loss is None:
            self._look()

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Keep the orders with the least held-out loss."""
        if self.check_every and (
            self.global_step % self.check_every == 0 or self.global_step == self.steps
        ):
            self.log("heldout_loss", self._look())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The best orders go with the weights."""
        checkpoint["best_loss"], checkpoint["best_orders"] = self.best_loss, self.best_orders

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As saved."""
        self.best_loss, self.best_orders = checkpoint["best_loss"], checkpoint["best_orders"]

    def chosen_orders(self) -> list[Tensor]:
        """(n,) canonical order of each site: the best on held-out text, or the last."""
        return self.best_orders if self.check_every else self._hardened()

    @torch.no_grad()
    def _look(self) -> float:
        found = self._hardened()
        pieces = [
            [
                part.weight * ordered_mask(part.score, order, problem.pattern)
                for part in problem.parts
            ]
            for problem, order in zip(self.problems, found, strict=True)
        ]
        weights = assemble(self.sites, pieces)
        losses = [float(self.model_loss(tokens, weights)) for tokens in self.heldout]
        loss = sum(losses) / len(losses)
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_orders = loss, found
        return loss

    def _hardened(self) -> list[Tensor]:
        return [
            order.hardened(problem.pattern)
            for problem, order in zip(self.problems, self.orders, strict=True)
            if isinstance(order, LearnableOrder)
        ]

    def model_loss(self, tokens: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """What the model with other weights loses on (b, T) token ids."""
        (model,) = self.held
        if self.loss == "next_token":
            logits = model.logits(tokens, weights)[:, :-1]
            return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        with torch.no_grad():
            dense = model.hidden(tokens)
        return 1 - functional.cosine_similarity(model.hidden(tokens, weights), dense, dim=2).mean()

    def configure_optimizers(self) -> Any:
        """With a cosine decay to zero."""
        return _with_cosine(self.optimizer(self.orders.parameters()), self.steps)


def _with_cosine(optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Any]:
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
