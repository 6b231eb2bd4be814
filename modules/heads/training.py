"""Teach drafting heads on cached states; the target itself never runs."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from effllm.modules.heads.asking import accuracies, ask, true_ranks
from effllm.modules.heads.drafter import HeadDrafter
from effllm.modules.heads.loss import head_loss
from effllm.modules.heads.states import StateBatch, StateTexts
from effllm.modules.heads.target import FrozenTarget
from effllm.modules.training import OptimizerFactory, rising_then_falling


class HeadTraining(L.LightningModule):
    """Train a drafter; a batch holds numbers of texts.

    Args:
        drafter: what is trained.
        target: its frozen parts; neither trained nor stored.
        texts: to learn from.
        heldout: judge the heads while they learn.
        judged_every: steps between two judgements; the first is before an epoch's first step, so
            that a resumed training has the same.
        judged_texts: first so many held-out texts that do it.
        optimizer: factory, called with groups of parameters.
        attention_scale: learning rate of attention layers, relative to the others'.
        warmup: share of all steps with a rising learning rate; then it falls as a cosine.
        clip_norm: largest norm of the gradient.
        decay: as in `head_loss`, like the two weights.
        ce_weight: of the true token.
        kd_weight: of the target's law.
    """

    def __init__(
        self,
        drafter: HeadDrafter,
        target: FrozenTarget,
        texts: StateTexts,
        heldout: StateTexts,
        *,
        judged_every: int,
        judged_texts: int,
        optimizer: OptimizerFactory,
        attention_scale: float,
        warmup: float,
        clip_norm: float,
        decay: float,
        ce_weight: float,
        kd_weight: float,
    ) -> None:
        super().__init__()
        self.drafter, self.target = drafter, target
        self.texts, self.heldout = texts, heldout
        self.judged_every, self.judged_texts = judged_every, judged_texts
        self.optimizer, self.attention_scale = optimizer, attention_scale
        self.warmup, self.clip_norm = warmup, clip_norm
        self.decay, self.ce_weight, self.kd_weight = decay, ce_weight, kd_weight

    def on_fit_start(self) -> None:
        """The target's parts are no submodule, so Lightning does not move them."""
        self.target = self.target.to(self.device)

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Loss of some texts."""
        if batch_index % self.judged_every == 0:
            ranks, _ = true_ranks(
                self.drafter, self.target, self.heldout, self.device, self.judged_texts
            )
            self.log_dict({f"heldout/{key}": value for key, value in accuracies(ranks).items()})
        texts = self.texts.batch(batch[0].tolist(), self.device)
        asked = ask(self.drafter, self.target, texts)
        teacher, rows = _teacher(self.target, texts, asked.texts, asked.places)
        loss = head_loss(
            asked.logits,
            asked.labels,
            teacher,
            rows,
            decay=self.decay,
            ce_weight=self.ce_weight,
            kd_weight=self.kd_weight,
        )
        self.log("loss", loss.detach())
        return loss

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip by norm, whatever the trainer says."""
        torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), self.clip_norm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The configured optimiser under a rising, then falling learning rate."""
        slow = self.drafter.attention_parameters()
        known = {id(one) for one in slow}
        quick = [one for one in self.drafter.parameters() if id(one) not in known]
        optimizer = self.optimizer([{"params": one} for one in (quick, slow) if one])
        for group in optimizer.param_groups[1:]:
            group["lr"] *= self.attention_scale
        steps = int(self.trainer.estimated_stepping_batches)
        return rising_then_falling(optimizer, steps=steps, warmup=self.warmup)


@torch.no_grad()
def _teacher(
    target: FrozenTarget, batch: StateBatch, texts: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """The target's law at every place it is needed, once.

    Args:
        target: gives the head.
        batch: texts with hidden states.
        texts: (n,) text of each position.
        places: (n, K) place of each true token; the state one before it foresees it.

    Returns:
        (m, V) laws, and (n, K) the row of each; any row for places beyond a text's end.
    """
    width = batch.tokens.shape[1]
    place = torch.arange(width, device=places.device)
    needed = (place >= batch.prompt_lengths[:, None]) & (place + 1 < batch.lengths[:, None])
    rows = needed.flatten().cumsum(0) - 1
    laws = target.logits(batch.hidden[needed]).softmax(dim=-1)
    return laws, rows.clamp(min=0)[texts[:, None] * width + (places - 1).clamp(max=width - 1)]
