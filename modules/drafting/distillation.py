"""Teach a draft model what its target would say next, on text that the target itself wrote.

The traces hold the target's most likely next tokens at every place; the draft is trained on them
for several passes. Greedy speculation asks for the target's first choice, and the other likely
tokens say how close a call it was:

    loss = - sum_{v in top} p(v) log q(v),   q = softmax over the draft's own vocabulary.
"""

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import PreTrainedModel

from effllm.modules.training import OptimizerFactory, rising_then_falling

_JUDGED_TOGETHER = 8  # texts


def within_vocabulary(
    ids: Tensor, probabilities: Tensor, token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """The target's likely tokens as columns of a reduced head.

    Args:
        ids: (...) token ids.
        probabilities: (...) of each.
        token_ids: (n,) rising, the draft's vocabulary.

    Returns:
        (...) columns, and (...) probabilities, 0 where the head has no such token.
    """
    columns = torch.searchsorted(token_ids, ids).clamp(max=len(token_ids) - 1)
    known = token_ids[columns] == ids
    return columns * known, probabilities * known


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
        """Loss of (B, T) texts, (B, T, top) columns and (B, T, top) probabilities; 0 = padding."""
        texts, columns, probabilities = batch
        logits = self.draft(input_ids=texts, use_cache=False).logits.float()
        loss = distillation_loss(logits, columns.long(), probabilities.float())
        self.log("loss", loss.detach())
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The configured optimiser under a rising, then falling learning rate."""
        optimizer = self.optimizer([one for one in self.parameters() if one.requires_grad])
        steps = int(self.trainer.estimated_stepping_batches)
        return rising_then_falling(optimizer, steps=steps, warmup=self.warmup)


def distillation_loss(logits: Tensor, columns: Tensor, probabilities: Tensor) -> Tensor:
    """Mean cross-entropy to the target's likely tokens.

    Args:
        logits: (B, T, n) of the draft.
        columns: (B, T, top) of `logits`.
        probabilities: (B, T, top); all 0 where there is no text.
    """
    chosen = logits.gather(-1, columns) - logits.logsumexp(dim=-1, keepdim=True)
    weight = probabilities.sum(dim=-1)
    return -(probabilities * chosen).sum() / weight.sum().clamp(min=1e-9)


@torch.no_grad()
def agreement(draft: PreTrainedModel, texts: Tensor, choices: Tensor, used: Tensor) -> float:
    """Share of places where draft and target choose the same token.

    Args:
        draft: a model with a reduced head.
        texts: (N, T) token ids.
        choices: (N, T) token ids that the target finds most likely next.
        used: (N, T) bool, places that count.
    """
    head = draft.get_output_embeddings()
    same = []
    for at in range(0, len(texts), _JUDGED_TOGETHER):
        part = slice(at, at + _JUDGED_TOGETHER)
        logits = draft(input_ids=texts[part].to(draft.device), use_cache=False).logits
        chosen = head.token_ids[logits.argmax(dim=-1)].cpu()
        same.append((chosen == choices[part])[used[part]])
    return float(torch.cat(same).float().mean())
