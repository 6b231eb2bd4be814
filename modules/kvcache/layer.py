"""One attention layer of a cache: dense while the prompt is read, then compressed, then growing.

States live in three places, in the order in which attention reads them: compressed segments of
keys and values (`past`), and a dense buffer (`tail`) with protected and new tokens. Keys carry
their rotation, so the order of tokens does not matter to attention; the newest are always last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from effllm.modules.kvcache.compression import Compression, compress_prompt
from effllm.modules.kvcache.eviction.base import Prefill
from effllm.modules.kvcache.segment import Segment, stored_bytes

_GROWTH = 64  # tokens that a full buffer gains


class CompressedLayer(CacheLayerMixin):
    """Keys and values of one layer.

    Args:
        method: what is done to the prompt.
        layer: index of this layer.
        layers: number of layers.
        automatic: compress at the end of the first pass; else when `compress` is called.

    Attributes:
        length: positions seen, evicted ones included.
        past: compressed keys and values, or None before the prompt is compressed.
        direct: the attention function reads the packed form itself, so `update` need not rebuild.
    """

    is_sliding = False
    is_croppable = True

    def __init__(
        self, method: Compression, layer: int, layers: int, *, automatic: bool = True
    ) -> None:
        super().__init__()
        self.method, self.layer, self.layers, self.automatic = method, layer, layers, automatic
        self._forget()

    def _forget(self) -> None:
        self.keys = self.values = None  # dense buffers (B, Hkv, capacity, D)
        self.is_initialized = False
        self.direct = False
        self.length = 0  # positions seen
        self.held = 0  # tokens in the dense buffers
        self.first = 0  # of them, protected ones of the start of the prompt
        self.past: tuple[Segment, Segment] | None = None
        self.past_valid: Tensor | None = None  # (B, Hkv, S) of the past, where there is padding
        self.held_valid: Tensor | None = None  # (B, n) of the first n dense tokens
        self.weight: Tensor | None = None
        self.queries: Tensor | None = None
        self.rotation: Tensor | None = None  # (B, 2, W, R) of the queries
        self.scaling = 1.0
        self._given: tuple[tuple[int, torch.Size], ...] = ()  # what `update` returned last

    def reset(self) -> None:
        """Forget everything; the cache can serve another request."""
        self._forget()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the shape and device of the first states."""
        dtype = self.method.dtype(key_states.dtype)
        self.keys = key_states.new_empty(key_states.shape, dtype=dtype)
        self.values = value_states.new_empty(value_states.shape, dtype=dtype)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, Hkv, n, D) states; all states so far, rebuilt in the dtype given.

        With `direct` set, only the dense ones are returned.
        """
        states = self._updated(key_states, value_states)
        self._given = tuple(map(_identity, states))
        return states

    def gave(self, keys: Tensor, values: Tensor) -> bool:
        """Whether these are the states that `update` returned last."""
        return self._given == (_identity(keys), _identity(values))

    def _updated(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self._pack_oldest()
        new = key_states.shape[2]
        self.keys = _appended(self.keys, self.held, key_states)
        self.values = _appended(self.values, self.held, value_states)
        self.held += new
        self.length += new
        if self.past is None and self.held == new:
            return key_states, value_states  # the first pass sees what it computed
        dtype = key_states.dtype
        keys, values = self.tail(dtype)
        if self.past is None or self.direct:
            return keys, values
        past = self.past_states(0, self.past[0].tokens, dtype)
        return torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)

    def tail(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Dense keys and values in a dtype."""
        assert self.keys is not None and self.values is not None
        return self.keys[:, :, : self.held].to(dtype), self.values[:, :, : self.held].to(dtype)

    def past_states(self, start: int, stop: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Compressed keys and values of a run of tokens, rebuilt."""
        assert self.past is not None
        keys = self.method.keys.decode(self.past[0], start, stop)
        values = self.method.values.decode(self.past[1], start, stop)
        return keys.to(dtype), values.to(dtype)

    def observe(
        self,
        queries: Tensor,
        scaling: float,
        valid: Tensor | None,
        rotation: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Note (B, H, n, D) queries of the pass whose states were appended last.

        Args:
            queries: after rotation and normalisation.
            scaling: factor of the scores.
            valid: (B, held) bool, False for padding; None if there is none.
            rotation: (B or 1, n, R) cosines and sines that the pass rotated by; None if it did not.
        """
        if self.past is not None:
            return
        last = slice(-self.method.observed, None)
        self.queries = _latest(self.queries, queries, last).clone()
        if rotation is not None:
            turned = torch.stack(rotation, dim=1).expand(len(queries), -1, -1, -1)
            self.rotation = _latest(self.rotation, turned, last).clone()
        self.scaling, self.held_valid = scaling, valid
        if self.automatic:
            self.compress()

    def compress(self) -> None:
        """Evict and pack what was read so far; the queries are forgotten.

        Raises:
            ValueError: if no queries were observed.
        """
        if self.past is None:
            self._hold(self._seen())

    def compressed(self, method: Compression) -> CompressedLayer:
        """A compressed copy of a layer that holds a dense prompt; this one stays as it is."""
        new = CompressedLayer(method, self.layer, self.layers, automatic=self.automatic)
        new.length, new.scaling = self.length, self.scaling
        new._hold(self._seen())
        return new

    def _seen(self) -> Prefill:
        """The dense prompt and its last queries."""
        if self.queries is None or self.keys is None or self.values is None:
            raise ValueError(
                f"cache layer {self.layer} saw no queries; run the model inside `attached(model)`"
            )
        queries = self.queries
        if self.held_valid is not None:  # queries of padding say nothing about channels
            queries = queries * self.held_valid[:, None, -queries.shape[2] :, None]
        return Prefill(
            keys=self.keys[:, :, : self.held],
            values=self.values[:, :, : self.held],
            queries=queries,
            valid=self.held_valid,
            scaling=self.scaling,
            layer=self.layer,
            layers=self.layers,
            rotation=self.rotation,
        )

    def _hold(self, seen: Prefill) -> None:
        """Keep a prompt as this layer's method leaves it."""
        kept = compress_prompt(seen, self.method)
        self.past, self.past_valid, self.held_valid = kept.past, kept.past_valid, kept.dense_valid
        self.keys, self.values = kept.dense
        self.held, self.first, self.is_initialized = kept.dense[0].shape[2], kept.first, True
        self.weight = kept.weight if self.method.chunk else None
        self.queries = self.rotation = None

    def _pack_oldest(self) -> None:
        """Pack the oldest dense tokens once there are enough; only between passes."""
        first, stop = self.first, self.first + self.method.chunk
        if stop == first or self.past is None or self.held < self.method.min_tail + stop:
            return
        assert self.keys is not None and self.values is not None and self.weight is not None
        formats, buffers = (self.method.keys, self.method.values), (self.keys, self.values)
        joined = []
        for form, old, buffer in zip(formats, self.past, buffers, strict=True):
            head = old.head if old.tokens and old.head else None
            added = form.encode(buffer[:, :, first:stop], self.weight, head)
            joined.append(old.joined(added) if old.tokens else added)
        self.past = (joined[0], joined[1])
        if self.past_valid is not None:
            assert self.held_valid is not None
            shown = self.valid_of_tail()
            assert shown is not None
            self.past_valid = torch.cat([self.past_valid, shown[:, :, first:stop]], dim=2)
            self.held_valid = torch.cat([shown[:, :, :first], shown[:, :, stop:]], dim=2)
        self.keys, self.values = (
            torch.cat([one[:, :, :first], one[:, :, stop : self.held]], dim=2) for one in buffers
        )
        self.held -= stop - first

    def valid_of_tail(self) -> Tensor | None:
        """(B, Hkv, held) bool of the dense tokens once compressed; None without padding."""
        if self.held_valid is None:
            return None
        shape = (*self.held_valid.shape[:2], self.held - self.held_valid.shape[2])
        return torch.cat([self.held_valid, self.held_valid.new_ones(shape)], dim=2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Stored tokens plus new ones, and how many positions were evicted."""
        stored = self.held + (self.past[0].tokens if self.past else 0)
        return stored + query_length, self.length - stored

    def get_seq_length(self) -> int:
        """Positions seen, evicted ones included: new tokens are rotated by it."""
        return self.length

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest tokens.

        Args:
            tokens_to_remove: minus their number.

        Raises:
            ValueError: for a positive number, or one that reaches into evicted or grouped tokens.
        """
        count = -tokens_to_remove
        if count < 0:
            raise ValueError(f"crop({tokens_to_remove}): give minus the number of tokens to remove")
        if not count or not self.is_initialized:
            return
        own = self.held - self.first
        if count > own:
            self._crop_past(count - own)
        dropped = min(count, own)
        self.held -= dropped
        self.length -= count
        if self.held_valid is not None:
            self.held_valid = self.held_valid[..., : self.held]

    def _crop_past(self, count: int) -> None:
        per_token = self.method.keys.per_token and self.method.values.per_token
        if self.past is None or self.method.evict or not per_token or count > self.past[0].tokens:
            raise ValueError(
                f"crop reaches {count} tokens into the compressed prompt, which cannot be cut "
                "with eviction or grouped tokens; keep more dense with protect_last"
            )
        left = self.past[0].tokens - count
        self.past = (self.past[0].first(left), self.past[1].first(left))
        if self.past_valid is not None:
            self.past_valid = self.past_valid[:, :, :left]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the batch for beam search."""
        self._over_batch(lambda one: one.index_select(0, beam_idx.to(one.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        self._over_batch(lambda one: one.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        self._over_batch(lambda one: one[indices, ...])

    def _over_batch(self, change: Any) -> None:
        for segment in self.past or ():
            segment.over_batch(change)
        names = ("keys", "values", "past_valid", "held_valid", "weight", "queries", "rotation")
        for name in names:
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, change(tensor))

    def stored(self) -> dict[str, int]:
        """Bytes held: compressed keys and values, the dense tail, and what else is kept."""
        found = {"keys": 0, "values": 0, "tail": 0, "other": 0}
        if self.past is not None:
            found["keys"] = stored_bytes(self.past[0].tensors())
            found["values"] = stored_bytes(self.past[1].tensors())
        found["tail"] = stored_bytes(one for one in (self.keys, self.values) if one is not None)
        others = (self.past_valid, self.held_valid, self.weight, self.queries, self.rotation)
        found["other"] = stored_bytes(one for one in others if one is not None)
        return found

    @property
    def dense_bytes(self) -> int:
        """Bytes that all positions seen would take uncompressed, in the dtype of the tail."""
        if self.keys is None or self.values is None:
            return 0
        rows = self.keys.shape[0] * self.keys.shape[1] * self.length
        return rows * (self.keys.shape[3] + self.values.shape[3]) * self.keys.element_size()


def _identity(states: Tensor) -> tuple[int, torch.Size]:
    return states.data_ptr(), states.shape


def _appended(buffer: Tensor, held: int, states: Tensor) -> Tensor:
    """The buffer, or a larger one, with states after its first `held` tokens."""
    wanted = held + states.shape[2]
    if wanted > buffer.shape[2]:
        batch, heads, capacity, channels = buffer.shape
        larger = buffer.new_empty(batch, heads, max(wanted, capacity + _GROWTH), channels)
        larger[:, :, :held] = buffer[:, :, :held]
        buffer = larger
    buffer[:, :, held:wanted] = states
    return buffer


def _latest(before: Tensor | None, new: Tensor, last: slice) -> Tensor:
    """The last rows of dimension 2 of what was seen and what is new."""
    joined = new if before is None else torch.cat([before, new[:, :, last]], dim=2)
    return joined[:, :, last]
