"""Models that read one token of many rows at a time, whatever they are made of.

The lockstep simulator asks a model for the logits of the next token of every row, and tells it
which rows go on: rows are dropped when they end and doubled where both tokens are followed.
"""

from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class Stepper(Protocol):
    """A model with the state of R rows."""

    def begin(self, prompts: Tensor) -> Tensor:
        """Forget all rows and read (R, T) prompts of one length; (R, V) float32 logits."""

    def step(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Keep (R',) rows, in this order, and read one of (R',) tokens each; (R', V) logits."""


class ModelStepper:
    """A causal language model with its cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.cache = DynamicCache(config=model.config)

    def begin(self, prompts: Tensor) -> Tensor:
        """As `Stepper`."""
        self.cache = DynamicCache(config=self.model.config)
        return self._read(prompts)

    def step(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """As `Stepper`."""
        self.cache.batch_select_indices(rows)
        return self._read(tokens[:, None])

    @torch.no_grad()
    def _read(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_ids=tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        ).logits
        return logits[:, -1].float()


class SecondChoice:
    """The target as its own draft: its second token where it is least sure, else its first.

    Logits of both are exchanged where the first is ahead by less than `margin`; the rest of the
    draft's distribution is the target's, so it tells nothing more.

    Args:
        target: the model.
        margin: in nats; the larger, the more second tokens are proposed.
    """

    def __init__(self, target: Stepper, margin: float) -> None:
        self.target, self.margin = target, margin

    def begin(self, prompts: Tensor) -> Tensor:
        """As `Stepper`."""
        return self._exchange(self.target.begin(prompts))

    def step(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """As `Stepper`."""
        return self._exchange(self.target.step(rows, tokens))

    def _exchange(self, logits: Tensor) -> Tensor:
        best = logits.topk(2, dim=-1)
        close = best.values[:, :1] - best.values[:, 1:] < self.margin
        exchanged = logits.scatter(-1, best.indices, best.values.flip(-1))
        return torch.where(close, exchanged, logits)
