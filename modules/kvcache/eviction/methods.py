"""Ways to choose the tokens of a prompt that stay: by place, by attention, by the norm of keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.kvcache.eviction.base import Budget, Eviction, Prefill, highest
from effllm.modules.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Eviction):
    """The first tokens and the most recent ones.

    Args:
        budget: tokens kept.
        sinks: first tokens.

    Source: StreamingLLM (arXiv 2309.17453), without moving positions.
    """

    budget: Budget
    sinks: NonNegativeInt = 4

    def keep(self, seen: Prefill) -> Tensor:
        """First and last tokens; the first after padding, where there is some."""
        count = self.budget.count(seen.tokens)
        place = torch.arange(seen.tokens, device=seen.keys.device)
        age = seen.ages()
        sink = (age >= 0) & (age < min(self.sinks, count))
        score = torch.where(sink, seen.tokens, place.expand_as(age)).float()
        return highest(score.unsqueeze(1).expand(-1, seen.keys.shape[1], -1), count, seen)


@dataclass(frozen=True, kw_only=True)
class SnapKV(Eviction):
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
        """Those of its own window."""
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
class Tova(Eviction):
    """The tokens that the last query attends to, the same for every head.

    Args:
        budget: tokens kept.

    Source: TOVA (arXiv 2401.06104), applied to the prompt.
    """

    budget: Budget

    def keep(self, seen: Prefill) -> Tensor:
        """Highest attention of the last query, mean over all heads; the last token always."""
        score = seen.attention(1)[:, :, :, 0].mean(dim=(1, 2))  # (B, S)
        score[:, -1] = 2.0
        count = self.budget.count(seen.tokens)
        return highest(score.unsqueeze(1).expand(-1, seen.keys.shape[1], -1), count, seen)


@dataclass(frozen=True, kw_only=True)
class KeyNorm(Eviction):
    """The tokens with the shortest keys: a control that needs no queries.

    Args:
        budget: tokens kept.
    """

    budget: Budget

    def keep(self, seen: Prefill) -> Tensor:
        """Shortest keys."""
        return highest(-seen.keys.float().norm(dim=-1), self.budget.count(seen.tokens), seen)
