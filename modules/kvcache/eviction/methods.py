"""Which tokens of a prompt stay in the cache: one budget, many ways to score tokens.

A method sees the keys and values of a prompt and the queries of its last W positions, and names n
tokens per key head to keep. Evicting them equals masking the others in a full cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from effllm.modules.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Share


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


class Eviction(Protocol):
    """A way to choose tokens."""

    budget: Budget

    @property
    def window(self) -> int:
        """Queries it wants to see."""

    def keep(self, seen: Prefill) -> Tensor:
        """(B, Hkv, n) int64 indices of kept tokens, ascending."""


@dataclass(frozen=True, kw_only=True)
class StreamingLLM:
    """The first tokens and the most recent ones.

    Args:
        budget: tokens kept.
        sinks: first tokens.

    Source: StreamingLLM (arXiv 2309.17453), without moving positions.
    """

    budget: Budget
    sinks: NonNegativeInt = 4

    @property
    def window(self) -> int:
        """None."""
        return 1

    def keep(self, seen: Prefill) -> Tensor:
        """First and last tokens; the first after padding, where there is some."""
        count = self.budget.count(seen.tokens)
        place = torch.arange(seen.tokens, device=seen.keys.device)
        age = seen.ages()
        sink = (age >= 0) & (age < min(self.sinks, count))
        score = torch.where(sink, seen.tokens, place.expand_as(age)).float()
        return highest(score.unsqueeze(1).expand(-1, seen.keys.shape[1], -1), count, seen)


@dataclass(frozen=True, kw_only=True)
class SnapKV:
    """The tokens that the last queries attend to, pooled over neighbours, and the window itself.

    Args:
        budget: tokens kept, window included.
        observed: queries of the window (W).
        kernel: tokens that are pooled by their mean; odd.
        beta: 1 gives every layer the same budget; PyramidKV's 20 gives the first layers more and
            the last fewer, linear in depth, with the same sum.

    Source: SnapKV (arXiv 2404.14469), PyramidKV (arXiv 2406.02069), numbers of SparK's runs. The
    budgets of the released runs fall back to 90 % of the prompt; these do not.
    """

    budget: Budget
    observed: PositiveInt = 64
    kernel: PositiveInt = 5
    beta: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0 or self.observed < 1 or self.beta < 1:
            raise ValueError("SnapKV needs an odd kernel, a window of at least 1, beta >= 1")

    @property
    def window(self) -> int:
        """As observed."""
        return self.observed

    def count(self, prompt: int, layer: int, layers: int) -> int:
        """Tokens kept by one layer, window included."""
        total = self.budget.count(prompt)
        window = min(self.observed, total)
        past = total - window
        low = past / self.beta
        high = 2 * past - low
        if high > prompt - window:
            high = prompt - window
            low = 2 * past - high
        # Rounding sums of layers keeps their total exact.
        steps = max(layers - 1, 1)
        ends = [
            round(sum(high - one * (high - low) / steps for one in range(stop)))
            for stop in (layer, layer + 1)
        ]
        return (ends[1] - ends[0] if layers > 1 else past) + window

    def keep(self, seen: Prefill) -> Tensor:
        """Highest pooled attention outside the window, and the window."""
        count = self.count(seen.tokens, seen.layer, seen.layers)
        window = min(self.observed, self.budget.count(seen.tokens))
        weights = seen.attention(self.observed)
        score = weights.mean(dim=3)  # (B, Hkv, G, S)
        if seen.tokens > window:
            outside = score[..., : seen.tokens - window]
            pooled = torch.nn.functional.avg_pool1d(
                outside.flatten(0, 1), self.kernel, stride=1, padding=self.kernel // 2
            )
            outside = pooled.reshape(outside.shape).mean(dim=2)
        else:
            outside = score[..., :0].mean(dim=2)
        inside = outside.new_full((*outside.shape[:2], window), 2.0)  # attention is below 1
        return highest(torch.cat([outside, inside], dim=-1), count, seen)


@dataclass(frozen=True, kw_only=True)
class Tova:
    """The tokens that the last query attends to, the same for every head.

    Args:
        budget: tokens kept.

    Source: TOVA (arXiv 2401.06104), applied to the prompt.
    """

    budget: Budget

    @property
    def window(self) -> int:
        """The last query."""
        return 1

    def keep(self, seen: Prefill) -> Tensor:
        """Highest attention of the last query, mean over all heads; the last token always."""
        score = seen.attention(1)[:, :, :, 0].mean(dim=(1, 2))  # (B, S)
        score[:, -1] = 2.0
        count = self.budget.count(seen.tokens)
        return highest(score.unsqueeze(1).expand(-1, seen.keys.shape[1], -1), count, seen)


@dataclass(frozen=True, kw_only=True)
class KeyNorm:
    """The tokens with the shortest keys: a control that needs no queries.

    Args:
        budget: tokens kept.
    """

    budget: Budget

    @property
    def window(self) -> int:
        """None."""
        return 1

    def keep(self, seen: Prefill) -> Tensor:
        """Shortest keys."""
        return highest(-seen.keys.float().norm(dim=-1), self.budget.count(seen.tokens), seen)


def highest(score: Tensor, count: int, seen: Prefill) -> Tensor:
    """Indices of the highest scores, ascending; padding only where nothing else is left."""
    if seen.valid is not None:
        score = score.masked_fill(~seen.valid.unsqueeze(1), -math.inf)
    order = score.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values
