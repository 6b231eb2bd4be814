"""What a cache asks of a format of keys or values, and the plainest one.

A format turns (B, Hkv, S, D) states into a `Segment` and back. `encode` may be given the head
tensors of an earlier segment, so that later tokens are stored in the same terms and joined to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from effllm.kernels.packed_keys import weighted_sum
from effllm.modules.kvcache.segment import Segment

_BLOCK = 512  # tokens rebuilt at a time: small enough for the caches of a CPU

Head = dict[str, Tensor]


class Format(ABC):
    """A way to store states: two methods and a formula of bytes.

    What reads them, `scores` and `mixture`, rebuilds a block of tokens at a time, so that no layer
    is ever dense; a format that can be read as it is stored says how.

    Class constants:
        per_token: every stored row belongs to one token, so that tokens can be cut and joined.
    """

    per_token: ClassVar[bool] = True

    @abstractmethod
    def encode(self, states: Tensor, weight: Tensor, head: Head | None = None) -> Segment:
        """Store (B, Hkv, S, D) states; `weight` is that of `channel_weight`."""

    @abstractmethod
    def decode(self, segment: Segment, start: int, stop: int) -> Tensor:
        """(B, Hkv, stop - start, D), float32 or the dtype that was stored."""

    @abstractmethod
    def row_bytes(self, channels: int, width: int) -> float:
        """Bytes per token and head by formula; `width` bytes per dense number."""

    def head_bytes(self, channels: int) -> int:
        """Bytes per head that all its tokens share, by formula."""
        return 0

    def scores(self, segment: Segment, query: Tensor) -> Tensor:
        """(B, Hkv, n, S) float32 scores of (B, Hkv, n, D) queries with all keys."""
        blocks = [self.decode(segment, *span).float() for span in _spans(segment)]
        return torch.cat([query[..., :0], *(query @ block.mT for block in blocks)], dim=-1)

    def mixture(self, segment: Segment, weights: Tensor) -> Tensor:
        """(B, Hkv, n, D) float32 sum of all values by (B, Hkv, n, S) weights."""
        if "states" in segment.rows:
            states = segment.rows["states"]
            mixed = weighted_sum(weights.flatten(0, 1), states.flatten(0, 1))
            return mixed.view(*weights.shape[:3], states.shape[3])
        mixed = weights.new_zeros(*weights.shape[:3], segment.channels)
        for start, stop in _spans(segment):
            mixed += weights[..., start:stop] @ self.decode(segment, start, stop).float()
        return mixed


def _spans(segment: Segment) -> Iterator[tuple[int, int]]:
    for start in range(0, segment.tokens, _BLOCK):
        yield start, min(start + _BLOCK, segment.tokens)


@dataclass(frozen=True, kw_only=True)
class Dense(Format):
    """States as they are."""

    def encode(self, states: Tensor, weight: Tensor, head: Head | None = None) -> Segment:
        """A copy with storage of its own."""
        copy = states.clone(memory_format=torch.contiguous_format)
        return Segment(states.shape[2], states.shape[3], {"states": copy})

    def decode(self, segment: Segment, start: int, stop: int) -> Tensor:
        """A view."""
        return segment.rows["states"][:, :, start:stop]

    def row_bytes(self, channels: int, width: int) -> float:
        """D numbers."""
        return channels * width
