"""The law that tokens are drawn from: temperature, then top-k, then top-p."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.ranges import NonNegativeFloat, NonNegativeInt, Share


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a distribution over tokens is made from logits.

    Args:
        temperature: 0 = always the most likely token.
        top_k: only the k most likely tokens; 0 = all.
        top_p: only the most likely tokens that together reach this probability.
    """

    temperature: NonNegativeFloat = 0.0
    top_k: NonNegativeInt = 0
    top_p: Share = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "need a finite temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got "
                f"{self.temperature}, {self.top_k}, {self.top_p}"
            )

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn at all."""
        return self.temperature == 0

    def law(self, logits: Tensor) -> Tensor:
        """(n, V) logits -> (n, V) float32 probabilities; plain softmax when greedy.

        Ties at the edge of top-k or top-p go to the lower token id.
        """
        logits = logits.float()
        if self.greedy:
            return torch.softmax(logits, dim=-1)
        law = torch.softmax(logits / self.temperature, dim=-1)
        if not self.top_k and self.top_p >= 1:
            return law
        ranked, order = law.sort(dim=-1, descending=True, stable=True)
        keep = torch.ones_like(ranked, dtype=torch.bool)
        if self.top_k:
            keep[..., self.top_k :] = False
        if self.top_p < 1:
            keep &= ranked.cumsum(dim=-1) - ranked < self.top_p
        kept = torch.zeros_like(law).scatter(-1, order, ranked * keep)
        return kept / kept.sum(dim=-1, keepdim=True)


def draw(law: Tensor, generator: torch.Generator) -> int:
    """One token from a (V,) law."""
    return int(torch.multinomial(law.to(generator.device), 1, generator=generator))
