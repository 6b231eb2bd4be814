"""ThinK: one choice of channels for all tokens of a head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.kvcache.formats.base import Format, Head
from effllm.modules.kvcache.segment import Segment
from effllm.modules.kvcache.selection import keep_largest
from effllm.modules.ranges import Share


@dataclass(frozen=True, kw_only=True)
class ThinkKeys(Format):
    """ThinK: the same channels kept for all tokens of a head, the others zero.

    Args:
        share: of channels kept, 0 < share <= 1; at least one is.

    Source: ThinK (arXiv 2407.21018): the score of a channel is mean q^2 times mean k^2. Stored
    gathered, as in its eager code; its flash version only zeroes.
    """

    share: Share

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"ThinK with a share of {self.share:g} kept; use 0 < share <= 1")

    def kept(self, channels: int) -> int:
        """Channels kept (T)."""
        return max(int(self.share * channels + 1e-9), 1)

    def encode(self, states: Tensor, weight: Tensor, head: Head | None = None) -> Segment:
        """Rows `values` (B, Hkv, S, T); head `index` (B, Hkv, T) int16."""
        tokens, channels = states.shape[2:]
        kept = self.kept(channels)
        if head is None:
            score = weight.square() * states.float().square().sum(dim=2)
            keep = keep_largest(score, kept)
            index = keep.nonzero()[:, 2].reshape(*keep.shape[:2], kept)
            head = {"index": index.to(torch.int16)}
        index = head["index"].long().unsqueeze(2).expand(-1, -1, tokens, -1)
        return Segment(tokens, channels, {"values": states.gather(3, index)}, head)

    def decode(self, segment: Segment, start: int, stop: int) -> Tensor:
        """Zeros where a channel was pruned."""
        values = segment.rows["values"][:, :, start:stop]
        index = segment.head["index"].long().unsqueeze(2).expand_as(values)
        dense = values.new_zeros(*values.shape[:3], segment.channels)
        return dense.scatter_(3, index, values)

    def row_bytes(self, channels: int, width: int) -> float:
        """T numbers."""
        return self.kept(channels) * width

    def head_bytes(self, channels: int) -> int:
        """A 16-bit index per kept channel."""
        return 2 * self.kept(channels)
