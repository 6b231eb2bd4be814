"""Raw and scaled coordinates for layer-wise least squares.

Language models have a few input channels with huge energy; gradient steps in the raw weights
crawl. Dividing each input channel by its root energy d gives G' = diag(1/d) G diag(1/d) with a
unit diagonal and W' = W diag(d). The output error is the same number in both, an L1 penalty in
the scaled space is a Wanda-weighted L1, and |W'| is Wanda's score.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from effllm.modules.errors import ConfigError

Space = Literal["raw", "scaled"]

_EXACT_LIMIT = 768  # an exact spectrum of 1536 columns costs as much as ten solver steps
_POWER_ITERATIONS = 100
_SETTLED = 1e-4  # relative change per iteration


@dataclass(frozen=True)
class Coordinates:
    """A Gram matrix in solver coordinates.

    Attributes:
        gram: (C, C) float32 in solver coordinates.
        scale: (C,) float32, d; ones in the raw space and for channels without energy.
    """

    gram: Tensor
    scale: Tensor

    @classmethod
    def of(cls, gram: Tensor, space: Space) -> "Coordinates":
        """Coordinates of a (C, C) Gram matrix.

        Raises:
            ConfigError: for a space that is not one of the two.
        """
        gram = gram.to(torch.float32)
        energy = gram.diagonal()
        if space == "scaled":
            scale = torch.where(energy > 0, energy, 1.0).sqrt()
            gram = gram / scale / scale[:, None]
        elif space == "raw":
            scale = torch.ones_like(energy)
        else:
            raise ConfigError(f"space must be raw or scaled, found {space!r}")
        return cls(gram, scale)

    @cached_property
    def largest(self) -> float:
        """Largest eigenvalue of `gram`, see `largest_eigenvalue`; computed when first asked for."""
        return largest_eigenvalue(self.gram)

    def enter(self, weight: Tensor) -> Tensor:
        """(R, C) weight -> solver coordinates, float32."""
        return weight.to(torch.float32) * self.scale

    def leave(self, weight: Tensor) -> Tensor:
        """Undo `enter`."""
        return weight / self.scale


def coordinates_by_layer(
    grams: Mapping[str, Tensor], space: Space, device: str
) -> dict[str, Coordinates]:
    """Coordinates per layer name; layers that share a Gram matrix share them."""
    shared: dict[int, Coordinates] = {}
    for gram in grams.values():
        if id(gram) not in shared:
            shared[id(gram)] = Coordinates.of(gram.to(device), space)
    return {name: shared[id(gram)] for name, gram in grams.items()}


def largest_eigenvalue(gram: Tensor) -> float:
    """Largest eigenvalue, exact up to 768 columns, else power iterations plus 5 %.

    The trace bounds it from above. Step 3 of SDS checks that its objective falls; step 2, whose
    accelerated steps need not fall one by one, checks that its result is finite.
    """
    if gram.shape[0] <= _EXACT_LIMIT:
        return float(torch.linalg.eigvalsh(gram)[-1])
    vector, estimate = gram.diagonal().sqrt(), 0.0
    for _ in range(_POWER_ITERATIONS):
        vector = gram @ (vector / vector.norm())
        previous, estimate = estimate, float(vector.norm())
        if estimate - previous < _SETTLED * estimate:
            break
    return min(1.05 * estimate, float(gram.diagonal().sum()))
