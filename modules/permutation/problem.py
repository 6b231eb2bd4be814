"""One choice of an order: the matrices that read the same channels, and what an order costs them.

Two objectives. The *retained score* is what RIA and Pool & Yu maximise: the sum of the pruner's
scores that stay. The *error* is what the layer's output loses, tr(E H E^T) with E the removed
weights and H the Gram matrix of the inputs; it needs no forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from effllm.modules.permutation.orders import ordered_mask
from effllm.modules.sparsity.masks import nm_mask, row_mask
from effllm.modules.sparsity.patterns import Grouped


@dataclass(frozen=True)
class Part:
    """Rows that read the channels with one Gram matrix.

    Attributes:
        weight: (R, n) float32.
        score: (R, n) float32 of the pruner, larger is more important.
        gram: (n, n) float32 of the inputs.
    """

    weight: Tensor
    score: Tensor
    gram: Tensor


@dataclass(frozen=True)
class Problem:
    """All rows that one order is chosen for.

    Attributes:
        parts: at least one; equal in n.
        pattern: N:M; its group divides n.
    """

    parts: Sequence[Part]
    pattern: Grouped

    @property
    def columns(self) -> int:
        """Number of channels n."""
        return self.parts[0].score.shape[1]

    @cached_property
    def score(self) -> Tensor:
        """(R, n) scores of all parts below each other."""
        return torch.cat([part.score for part in self.parts])

    @cached_property
    def output(self) -> float:
        """tr(W H W^T) of all parts: what an error of 1 means."""
        return sum(_energy(part.weight, part.gram) for part in self.parts)

    def retained(self, order: Tensor) -> float:
        """Sum of the scores that stay under an order."""
        score = self.score[:, order]
        mask = nm_mask(score, keep=self.pattern.keep, group=self.pattern.group)
        return float((score * mask).sum(dim=1).double().sum())

    def efficacy(self, order: Tensor) -> float:
        """Gain in retained score over the identity, as a share of what free rows would gain.

        Source: Pool & Yu (NeurIPS 2021) and NVIDIA apex, contrib/sparsity.
        """
        identity = self.retained(torch.arange(self.columns))
        ratio = 1 - self.pattern.keep / self.pattern.group
        free = row_mask(self.score, ratio=ratio)
        best = float((self.score * free).sum(dtype=torch.float64))
        return (self.retained(order) - identity) / (best - identity) if best > identity else 0.0

    def removed(self, order: Tensor) -> list[Tensor]:
        """(R, n) per part: minus the weights that an order's mask removes, E = W_pruned - W."""
        return [
            part.weight * (ordered_mask(part.score, order, self.pattern).float() - 1)
            for part in self.parts
        ]

    def error(self, order: Tensor, grams: Sequence[Tensor] | None = None) -> float:
        """Relative output error over all parts; with other Gram matrices, on other text."""
        chosen = [part.gram for part in self.parts] if grams is None else grams
        lost = sum(
            _energy(removed, gram)
            for removed, gram in zip(self.removed(order), chosen, strict=True)
        )
        output = self.output
        if grams is not None:
            output = sum(
                _energy(part.weight, gram) for part, gram in zip(self.parts, grams, strict=True)
            )
        return lost / output if output > 0 else 0.0


def _energy(rows: Tensor, gram: Tensor) -> float:
    """tr(W H W^T)."""
    return float((rows @ gram * rows).sum())
