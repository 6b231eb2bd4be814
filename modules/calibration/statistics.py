"""Input statistics of linear layers: all that layer-wise methods need to know of the data.

The output error of a linear layer, ||(W0 - W) X||^2 / N = tr((W0 - W) G (W0 - W)^T), depends on
the calibration tokens X only through the Gram matrix G = X X^T / N. One pass over the text is
therefore enough for any number of solver iterations. Everything accumulates in float32.
"""

from typing import Protocol

import torch
from torch import Tensor

from effllm.modules.errors import NumericalError

_BLOCK = 192  # columns per tile: the upper triangle alone costs little over half the product


class Statistic(Protocol):
    """A running statistic of the inputs of one layer."""

    def update(self, inputs: Tensor) -> None:
        """Add (..., C) inputs of any number of tokens."""

    def value(self) -> Tensor:
        """The statistic over all tokens seen."""


class Gram:
    """G = X X^T / N over all N tokens seen, (C, C) float32."""

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.sum = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        self.tokens = 0

    def update(self, inputs: Tensor) -> None:
        """Add the outer products of (..., C) inputs; only the upper triangle is computed."""
        tokens = inputs.reshape(-1, inputs.shape[-1]).to(torch.float32)
        for start in range(0, tokens.shape[1], _BLOCK):
            stop = min(start + _BLOCK, tokens.shape[1])
            self.sum[start:stop, start:].addmm_(tokens[:, start:stop].T, tokens[:, start:])
        self.tokens += tokens.shape[0]

    def value(self) -> Tensor:
        """(C, C) float32, symmetric.

        Raises:
            NumericalError: if any token was not finite, or no token was seen.
        """
        upper = torch.triu(self.sum) / max(self.tokens, 1)
        return _checked(upper + torch.triu(upper, diagonal=1).T, self.tokens)


class Energy:
    """Mean squared input per channel, the diagonal of the Gram matrix, (C,) float32."""

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.sum = torch.zeros(columns, dtype=torch.float32, device=device)
        self.tokens = 0

    def update(self, inputs: Tensor) -> None:
        """Add the squares of (..., C) inputs."""
        tokens = inputs.reshape(-1, inputs.shape[-1]).to(torch.float32)
        self.sum += tokens.square().sum(dim=0)
        self.tokens += tokens.shape[0]

    def value(self) -> Tensor:
        """(C,) float32.

        Raises:
            NumericalError: if any token was not finite, or no token was seen.
        """
        return _checked(self.sum / max(self.tokens, 1), self.tokens)


class Tokens:
    """The inputs themselves, (N, C) float32: for training on activations, at their full size."""

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.parts: list[Tensor] = []
        self.columns, self.device = columns, device

    def update(self, inputs: Tensor) -> None:
        """Append (..., C) inputs."""
        self.parts.append(inputs.reshape(-1, inputs.shape[-1]).to(torch.float32))

    def value(self) -> Tensor:
        """(N, C) float32, in the order seen.

        Raises:
            NumericalError: if any token was not finite, or no token was seen.
        """
        empty = torch.zeros(0, self.columns, device=self.device)
        tokens = torch.cat(self.parts) if self.parts else empty
        return _checked(tokens, len(tokens))


def _checked(value: Tensor, tokens: int) -> Tensor:
    if tokens == 0:
        raise NumericalError("no token reached this layer; is the calibration text empty?")
    if not torch.isfinite(value).all():
        raise NumericalError(
            "the layer's inputs are not finite (NaN or infinity); try budget.dtype=float32, or "
            "check the model that feeds this layer"
        )
    return value


def output_error(original: Tensor, changed: Tensor, gram: Tensor) -> float:
    """Relative output error tr((W0 - V) G (W0 - V)^T) / tr(W0 G W0^T).

    Args:
        original: (R, C) weight W0.
        changed: (R, C) weight V.
        gram: (C, C) Gram matrix of the inputs that both weights are fed with.

    Returns:
        Squared error as a share of the squared output; 0 for equal weights.
    """
    weight = original.to(torch.float32)
    difference = weight - changed.to(torch.float32)
    error = torch.sum((difference @ gram) * difference)
    output = torch.sum((weight @ gram) * weight)
    return float(error / output) if float(output) > 0 else 0.0
