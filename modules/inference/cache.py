"""A key-value cache in fixed slots: nothing is copied per token, and rolling back is a number.

transformers' dynamic cache concatenates at every step and its `crop` changed meaning within
version 5. Here each layer owns one buffer that doubles when it is full; what lies beyond `length`
is stale and is overwritten by the next pass. Every layer keeps all positions, so models with
sliding windows can be rolled back too: their masks hide what lies outside the window.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_FIRST_CAPACITY = 256  # tokens


class SlotLayer(CacheLayerMixin):
    """Keys and values of one attention layer, (B, Hkv, capacity, D), valid up to `length`."""

    is_sliding = False
    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the shape, dtype and device of the first states."""
        self.keys = _with_capacity(key_states, _FIRST_CAPACITY)
        self.values = _with_capacity(value_states, _FIRST_CAPACITY)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, Hkv, n, D) states; views of all states so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        start, stop = self.length, self.length + key_states.shape[-2]
        self._make_room(stop)
        self.keys[:, :, start:stop] = key_states
        self.values[:, :, start:stop] = value_states
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def reserve(
        self, length: int, heads: int, size: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Make room for `length` positions on the CPU; both buffers, for a writer of their own."""
        if not self.is_initialized:
            like = torch.empty(1, heads, 0, size, dtype=dtype)
            self.lazy_initialization(like, like)
        self._make_room(length)
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _make_room(self, length: int) -> None:
        assert self.keys is not None and self.values is not None
        if length > self.keys.shape[-2]:
            capacity = max(length, 2 * self.keys.shape[-2])
            self.keys = _grown(self.keys, self.length, capacity)
            self.values = _grown(self.values, self.length, capacity)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Cached positions."""
        return self.length

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class SlotCache(Cache):
    """One `SlotLayer` per decoder layer."""

    def __init__(self, layers: int) -> None:
        self.slots = [SlotLayer() for _ in range(layers)]
        super().__init__(layers=list(self.slots))

    def rollback_to(self, length: int) -> None:
        """Forget all positions from `length` on."""
        for layer in self.slots:
            if length > layer.length:
                raise ValueError(f"cannot roll forward from {layer.length} to {length}")
            layer.length = length

    def keep_slots(self, start: int, slots: list[int]) -> None:
        """Move the given slots to `start`, `start + 1`, … and forget all others from `start` on.

        Args:
            start: first slot to fill.
            slots: rising slot numbers, each at least its own new place.
        """
        wanted = torch.tensor(slots, dtype=torch.long)
        for layer in self.slots:
            for buffer in (layer.keys, layer.values):
                assert buffer is not None
                place = wanted.to(buffer.device)
                buffer[:, :, start : start + len(slots)] = buffer[:, :, place]
            layer.length = start + len(slots)


def _with_capacity(states: Tensor, capacity: int) -> Tensor:
    batch, heads, _, size = states.shape
    return states.new_zeros(batch, heads, capacity, size)


def _grown(buffer: Tensor, length: int, capacity: int) -> Tensor:
    larger = _with_capacity(buffer, capacity)
    larger[:, :, :length] = buffer[:, :, :length]
    return larger
