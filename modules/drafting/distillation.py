"""Teach a draft model what its target would say next, on text that the target itself wrote.

The target reads every text once and its most likely next tokens are stored; the draft is trained
on them for several passes. Greedy speculation asks for the target's first choice, and the other
likely tokens say how close a call it was:

    loss = - sum_{v in top} p(v) log q(v),   q = softmax over the draft's own vocabulary.
"""

import math
from collections.abc import Callable

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import PreTrainedModel

_JUDGED_TOGETHER = 8  # texts
OptimizerFactory = Callable[..., torch.optim.Optimizer]


@torch.no_grad()
def likely_tokens(
    model: PreTrainedModel, texts: Tensor, token_ids: Tensor, top: int
) -> tuple[Tensor, Tensor]:
    """The target's most likely next tokens at every place.

    Args:
        model: the target.
        texts: (B, T) token ids, padded on the right.
        token_ids: (n,) the draft's vocabulary.
        top: tokens per place.

    Returns:
        (B, T, top) places in `token_ids`, and (B, T, top) probabilities under the target's whole
        vocabulary; what lies outside of `token_ids` is left out.
    """
    logits = model(input_ids=texts.to(model.device), use_cache=False).logits.float()
    scale = logits.logsumexp(dim=-1, keepdim=True)
    known = logits[..., token_ids.to(model.device)] - scale
    best = known.topk(top, dim=-1)
    return best.indices.cpu(), best.values.exp().cpu()


class DraftDistillation(L.LightningModule):
    """Train a draft model; its input embeddings stay the target's.

    Args:
        draft: a model with a reduced head.
        optimizer: factory, called with the trained parameters.
        warmup: share of all steps with a rising learning rate; then it falls as a cosine.
    """

    def __init__(
        self, draft: PreTrainedModel, optimizer: OptimizerFactory, warmup: float = 0.05
    ) -> None:
        super().__init__()
        self.draft = draft
        self.optimizer, self.warmup = optimizer, warmup
        draft.get_input_embeddings().weight.requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Loss of (B, T) texts, (B, T, top) places and (B, T, top) probabilities; 0 = padding."""
        texts, places, probabilities = batch
        logits = self.draft(input_ids=texts, use_cache=False).logits.float()
        return distillation_loss(logits, places.long(), probabilities.float())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The configured optimiser under a rising, then falling learning rate."""
        optimizer = self.optimizer([one for one in self.parameters() if one.requires_grad])
        steps = int(self.trainer.estimated_stepping_batches)
        rise = max(1, int(self.warmup * steps))

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def distillation_loss(logits: Tensor, places: Tensor, probabilities: Tensor) -> Tensor:
    """Mean cross-entropy to the target's likely tokens.

    Args:
        logits: (B, T, n) of the draft.
        places: (B, T, top) columns of `logits`.
        probabilities: (B, T, top); all 0 where there is no text.
    """
    chosen = logits.gather(-1, places) - logits.logsumexp(dim=-1, keepdim=True)
    weight = probabilities.sum(dim=-1)
    return -(probabilities * chosen).sum() / weight.sum().clamp(min=1e-9)


@torch.no_grad()
def agreement(draft: PreTrainedModel, texts: Tensor, places: Tensor, used: Tensor) -> float:
    """Share of places where draft and target choose the same token.

    Args:
        draft: a model with a reduced head.
        texts: (N, T) token ids.
        places: (N, T, top) from `likely_tokens`, the most likely first.
        used: (N, T) bool, places that count.
    """
    same = []
    for at in range(0, len(texts), _JUDGED_TOGETHER):
        part = slice(at, at + _JUDGED_TOGETHER)
        logits = draft(input_ids=texts[part].to(draft.device), use_cache=False).logits
        same.append((logits.argmax(dim=-1).cpu() == places[part, :, 0])[used[part]])
    return float(torch.cat(same).float().mean())
