"""Medusa-1: every head guesses from the hidden state alone, without knowing of the others."""

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from effllm.modules.heads.drafter import HeadDrafter, ResidualBlock, TokenReader
from effllm.modules.ranges import PositiveInt


class Medusa(HeadDrafter):
    """A stack of residual blocks per head.

    Args:
        config: of the target.
        heads: tokens guessed per position (K).
        layers: residual blocks per head; more make it as large as another drafter.

    Source: Medusa (arXiv:2401.10774), code FasterDecoding/Medusa, medusa/model/medusa_model.py.
    Deviates: the target's head is shared and frozen, as in its training script; heads of their own
        would be nearly as large as a small target.
    """

    def __init__(
        self, config: PretrainedConfig, *, heads: PositiveInt = 4, layers: PositiveInt = 1
    ) -> None:
        super().__init__(heads)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(config.hidden_size) for _ in range(layers)))
            for _ in range(heads)
        )

    def guess(self, features: Tensor) -> Tensor:
        """(n, 1, C) -> (n, K, C)."""
        return torch.stack([block(features[:, 0]) for block in self.blocks], dim=1)


class MedusaToken(Medusa):
    """Medusa that also reads the token the target has just chosen, and nothing else more.

    Says how much of a gain over Medusa is due to that token alone.

    Args:
        config: of the target.
        heads: tokens guessed per position (K).
        layers: residual blocks per head.

    Source: ours, a control.
    """

    reads_token = True

    def __init__(
        self, config: PretrainedConfig, *, heads: PositiveInt = 4, layers: PositiveInt = 1
    ) -> None:
        super().__init__(config, heads=heads, layers=layers)
        self.reader = TokenReader(config.hidden_size)

    def adapt(self, hidden: Tensor, embedded: Tensor, cache: object = None) -> Tensor:
        """(B, T, C), (B, T, C) -> (B, T, 1, C)."""
        mixed: Tensor = self.reader(hidden, embedded)
        return mixed[:, :, None]
