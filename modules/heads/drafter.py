"""What all drafting heads share: head k, read at position t, guesses token t + 1 + k.

The target has already chosen token t + 1 when heads are asked, so head 1 guesses the token after
it. A drafter turns the target's hidden states into K vectors per position; the target's own frozen
head turns these into logits. It works in two steps, since the first looks back along the text and
the second does not: `adapt` gives features per position, `guess` the vectors of some positions.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from effllm.modules.ranges import PositiveInt


class HeadDrafter(nn.Module, ABC):
    """Base of all drafters: features are the hidden states themselves.

    Args:
        heads: tokens guessed per position (K).

    Attributes:
        reads_token: whether it reads token t + 1, which the target has just chosen.
        cached_layers: attention layers along the text, which keep a cache while decoding.
    """

    reads_token = False
    cached_layers = 0

    def __init__(self, heads: PositiveInt) -> None:
        super().__init__()
        self.heads = heads

    def adapt(self, hidden: Tensor, embedded: Tensor, cache: Cache | None = None) -> Tensor:
        """Features of every position.

        Args:
            hidden: (B, T, C) the target's last hidden states, after its final norm.
            embedded: (B, T, C) the target's embedding of the token after each position.
            cache: what was adapted before, if features look back along the text; grows by T.

        Returns:
            (B, T, S, C) of S stages.
        """
        return hidden[:, :, None]

    @property
    def reads_text(self) -> bool:
        """Whether features of a position depend on those before it."""
        return self.cached_layers > 0

    @abstractmethod
    def guess(self, features: Tensor) -> Tensor:
        """(n, S, C) features of n positions -> (n, K, C) vectors for the target's head."""

    def attention_parameters(self) -> list[nn.Parameter]:
        """Parameters of attention layers, which are taught more slowly."""
        return []

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """(B, T, C), (B, T, C) -> (B, T, K, C); see `adapt`."""
        features = self.adapt(hidden, embedded)
        return self.guess(features.flatten(0, 1)).unflatten(0, features.shape[:2])


class ResidualBlock(nn.Module):
    """x + SiLU(A x + b); the identity at the start.

    Args:
        hidden: C.

    Source: Medusa, code medusa/model/medusa_model.py.
    Deviates: the bias starts at zero too, so that the start is exactly the identity.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return inputs + nn.functional.silu(self.linear(inputs))


class TokenReader(nn.Module):
    """A linear map of hidden state and normalised token embedding, [I | 0] at the start.

    Args:
        hidden: C.
        identity_start: begin with the hidden state unchanged; else as PyTorch begins.

    Source: Amphista (arXiv:2406.13170); the formula is ours, as EAGLE fuses the two.
    """

    def __init__(self, hidden: int, *, identity_start: bool = True) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.linear = nn.Linear(2 * hidden, hidden)
        if identity_start:
            nn.init.zeros_(self.linear.bias)
            with torch.no_grad():
                self.linear.weight.copy_(torch.eye(hidden, 2 * hidden))

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """(..., C) states and (..., C) embeddings -> (..., C)."""
        mixed: Tensor = self.linear(torch.cat([hidden, self.norm(embedded)], dim=-1))
        return mixed
