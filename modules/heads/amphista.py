"""Amphista: heads that see each other, on features adapted to guessing several tokens at once.

Staged Adaptation layers turn the target's next-token features into others; every head has a
residual block; the Auto-embedding block is a transformer encoder over the K heads of one position,
without a mask, so that each head knows what the others are about to say:

    g_k = Block_k(s_k),   Z = Encoder([g_1 .. g_K] + P),   logits_k = W z_k.

At the start all of it is the identity: every head says what the target says next.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import Cache

from effllm.modules.heads.drafter import HeadDrafter, ResidualBlock
from effllm.modules.heads.staged import StagedAdaptation
from effllm.modules.ranges import NonNegativeInt, PositiveInt


class Amphista(HeadDrafter):
    """Bi-directional drafting heads, each part with a switch.

    Args:
        config: of the target.
        heads: tokens guessed per position (K).
        sa_layers: staged adaptation blocks; 0 leaves the hidden states as they are, and the token
            unread.
        ae_layers: encoder layers over the heads; 0: no head knows of the others.
        ae_position: encoder after the heads' own blocks, or before them.
        reads_token: let the staged blocks read the token that the target has just chosen.
        identity_start: begin as the target's own head.

    Source: Amphista (arXiv:2406.13170). Which stage a head reads, the encoder's layers, width and
        place, and the start are ours: the paper's text was not available.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        heads: PositiveInt = 4,
        sa_layers: NonNegativeInt = 2,
        ae_layers: NonNegativeInt = 1,
        ae_position: Literal["after_mlp", "before_mlp"] = "after_mlp",
        reads_token: bool = True,
        identity_start: bool = True,
    ) -> None:
        super().__init__(heads)
        self.ae_position = ae_position
        self.reads_token, self.cached_layers = reads_token and sa_layers > 0, sa_layers
        self.staged = (
            StagedAdaptation(
                config, sa_layers, reads_token=reads_token, identity_start=identity_start
            )
            if sa_layers
            else None
        )
        near = (heads + 1) // 2  # heads that read the first stage
        last = max(sa_layers - 1, 0)
        self.stages = [0 if head < near else last for head in range(heads)]
        self.blocks = nn.ModuleList(ResidualBlock(config.hidden_size) for _ in range(heads))
        self.encoder = nn.ModuleList(
            _encoder_layer(config, identity_start=identity_start) for _ in range(ae_layers)
        )
        self.places = nn.Parameter(torch.zeros(heads, config.hidden_size)) if ae_layers else None

    def adapt(self, hidden: Tensor, embedded: Tensor, cache: Cache | None = None) -> Tensor:
        """Features of every position; see `HeadDrafter.adapt`."""
        if self.staged is None:
            return hidden[:, :, None]
        found: Tensor = self.staged(hidden, embedded, cache)
        return found

    def guess(self, features: Tensor) -> Tensor:
        """(n, S, C) -> (n, K, C)."""
        vectors = features[:, self.stages]  # (n, K, C)
        if self.ae_position == "before_mlp":
            vectors = self._exchange(vectors)
        vectors = torch.stack([one(vectors[:, k]) for k, one in enumerate(self.blocks)], dim=1)
        return self._exchange(vectors) if self.ae_position == "after_mlp" else vectors

    def _exchange(self, vectors: Tensor) -> Tensor:
        """The auto-embedding block: attention among the (n, K, C) heads of one position."""
        if self.places is None:
            return vectors
        vectors = vectors + self.places
        for layer in self.encoder:
            vectors = layer(vectors)
        return vectors

    def attention_parameters(self) -> list[nn.Parameter]:
        """Those of the staged blocks and of the encoder."""
        staged = [] if self.staged is None else list(self.staged.blocks.parameters())
        return [*staged, *self.encoder.parameters()]


def _encoder_layer(config: PretrainedConfig, *, identity_start: bool) -> nn.Module:
    """Pre-norm attention and a feed-forward part, as wide as the target's."""
    layer = nn.TransformerEncoderLayer(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    if identity_start:
        for linear in (layer.self_attn.out_proj, layer.linear2):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
    return layer
