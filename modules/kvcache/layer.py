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

from effllm.modules.kvcache.compression import Compression
from effllm.modules.kvcache.eviction import Prefill
from effllm.modules.kvcache.queries import channel_weight
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
        self.keys = key_states.new_empty(*_room(key_states), dtype=dtype)
        self.values = value_states.new_empty(*_room(value_states), dtype=dtype)
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
        if self.past is not None:
            return
        compressed = self.compressed(self.method)
        self.__dict__.update(compressed.__dict__)

    def compressed(self, method: Compression) -> CompressedLayer:
        """A compressed copy of a layer that holds a dense prompt; this one stays as it is."""
        if self.queries is None or self.keys is None or self.values is None:
            raise ValueError(
                f"cache layer {self.layer} saw no queries; run the model inside `attached(model)`"
            )
        states = self.keys[:, :, : self.held], self.values[:, :, : self.held]
        new = CompressedLayer(method, self.layer, self.layers, automatic=self.automatic)
        dtype = method.dtype(self.keys.dtype)
        keys, values = (one.to(dtype) for one in states)
        queries = self.queries
        if self.held_valid is not None:  # queries of padding say nothing about channels
            queries = queries * self.held_valid[:, None, -queries.shape[2] :, None]
        seen = Prefill(
            keys=states[0],
            values=states[1],
            queries=queries,
            valid=self.held_valid,
            scaling=self.scaling,
            layer=self.layer,
            layers=self.layers,
            rotation=self.rotation,
        )
        valid = None
        if self.held_valid is not None:
            valid = self.held_valid.unsqueeze(1).expand(-1, keys.shape[1], -1)
        if method.evict is not None:
            kept = method.evict.keep(seen)
            keys, values = _taken(keys, kept), _taken(values, kept)
            valid = None if valid is None else valid.gather(2, kept)
        tokens = keys.shape[2]
        first = min(method.protect_first, tokens)
        last = max(tokens - method.protect_last, first)
        weight = channel_weight(
            queries[:, :, -method.window :], keys.shape[1], reduce=method.group_reduce
        )
        packed = [one[:, :, first:last] for one in (keys, values)]
        if valid is not None:
            # Padding becomes the mean of what is real, so that it does not move channels' means.
            packed = [_mean_where(~valid[:, :, first:last], one) for one in packed]
        new.past = (
            method.keys.encode(packed[0], weight),
            method.values.encode(packed[1], weight),
        )
        new.length, new.first = self.length, first
        new.weight = weight if method.chunk else None
        dense = [torch.cat([one[:, :, :first], one[:, :, last:]], dim=2) for one in (keys, values)]
        new.keys, new.values = (_appended(one.new_empty(*_room(one)), 0, one) for one in dense)
        new.held, new.is_initialized, new.scaling = dense[0].shape[2], True, self.scaling
        if valid is not None and not bool(valid.all()):
            new.past_valid = valid[:, :, first:last].clone()
            # Which protected tokens are padding may differ between heads after eviction.
            new.held_valid = torch.cat([valid[:, :, :first], valid[:, :, last:]], dim=2)
        return new

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
        rest = [
            torch.cat([one[:, :, :first], one[:, :, stop : self.held]], dim=2) for one in buffers
        ]
        self.keys, self.values = (_appended(one.new_empty(*_room(one)), 0, one) for one in rest)
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


def _room(states: Tensor) -> tuple[int, int, int, int]:
    batch, heads, tokens, channels = states.shape
    return batch, heads, tokens, channels


def _appended(buffer: Tensor, held: int, states: Tensor) -> Tensor:
    """The buffer, or a larger one, with states behind its first `held` tokens."""
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


def _mean_where(padding: Tensor, states: Tensor) -> Tensor:
    """(B, Hkv, S, D) states with padding replaced by the mean of the other tokens."""
    hidden = padding.unsqueeze(-1)
    real = (~hidden).sum(dim=2, keepdim=True).clamp_min(1)
    mean = states.float().masked_fill(hidden, 0.0).sum(dim=2, keepdim=True) / real
    return torch.where(hidden, mean.to(states.dtype), states)


def _taken(states: Tensor, kept: Tensor) -> Tensor:
    index = kept.unsqueeze(-1).expand(-1, -1, -1, states.shape[-1])
    return states.gather(2, index)
