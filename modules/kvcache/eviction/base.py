"""What a way to choose tokens is given, and what it has to say.

A method sees the keys and values of a prompt and the queries of its last W positions, and names n
tokens per key head to keep. Evicting them equals masking the others in a full cache.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.ranges import PositiveInt, Share


@dataclass(frozen=True)
class Prefill:
    """What one attention layer saw of the prompt.

    Attributes:
        keys: (B, Hkv, S, D) after rotation.
        values: (B, Hkv, S, D).
        queries: (B, H, W, D) of the last W <= S positions, after rotation.
        valid: (B, S) bool, False for padding; None if there is none.
        scaling: factor of the scores.
        layer: index of the layer.
        layers: number of layers.
        rotation: (B, 2, W, R) cosines and sines that the queries were rotated by; None for models
            without rotation.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor
    valid: Tensor | None
    scaling: float
    layer: int
    layers: int
    rotation: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Prompt length (S)."""
        return self.keys.shape[2]

    def ages(self) -> Tensor:
        """(B, S) place of each token in its text; -1 for padding on the left."""
        if self.valid is None:
            place = torch.arange(self.tokens, device=self.keys.device)
            return place.expand(self.keys.shape[0], -1)
        return self.valid.cumsum(dim=-1) - 1

    def attention(self, window: int) -> Tensor:
        """(B, Hkv, G, W, S) float32 attention of the last `window` queries."""
        queries = self.queries[:, :, -window:].float()
        batch, _, seen, channels = queries.shape
        grouped = queries.reshape(batch, self.keys.shape[1], -1, seen, channels)
        scores = grouped @ self.keys.float().unsqueeze(2).mT * self.scaling
        place = torch.arange(self.tokens, device=scores.device)
        later = place > place[-seen:].unsqueeze(1)  # causal inside the window
        scores = scores.masked_fill(later, -math.inf)
        if self.valid is not None:
            scores = scores.masked_fill(~self.valid[:, None, None, None, :], -math.inf)
        # A row of padding sees nothing at all: its weights are zero, not NaN.
        return scores.softmax(dim=-1).nan_to_num(0.0)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many tokens stay: a share of the prompt, or a number.

    Args:
        share: of the prompt's tokens, 0 < share <= 1; or null.
        tokens: number, the whole prompt if it is shorter; or null.
    """

    share: Share | None = None
    tokens: PositiveInt | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.tokens is None):
            raise ValueError("a token budget is either a share or a number of tokens")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"a token budget of {self.share:g} of the prompt; use 0 < share <= 1")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"a budget of {self.tokens} tokens; keep at least 1")

    def count(self, prompt: int) -> int:
        """Tokens kept of a prompt."""
        wanted = self.tokens if self.share is None else round(self.share * prompt)
        assert wanted is not None
        return min(max(wanted, 1), prompt)


class Eviction(ABC):
    """A way to choose tokens: one method.

    Attributes:
        budget: tokens kept.
    """

    budget: Budget

    @property
    def window(self) -> int:
        """Last queries that it wants to see."""
        return 1

    @abstractmethod
    def keep(self, seen: Prefill) -> Tensor:
        """(B, Hkv, n) int64 indices of kept tokens, ascending."""


def highest(score: Tensor, count: int, seen: Prefill) -> Tensor:
    """Indices of the highest scores, ascending; padding only where nothing else is left."""
    if seen.valid is not None:
        score = score.masked_fill(~seen.valid.unsqueeze(1), -math.inf)
    order = score.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values
