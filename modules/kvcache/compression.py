"""What is done to a cache: which tokens stay, how keys are stored, how values are stored."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from effllm.modules.kvcache.eviction.base import Eviction, Prefill
from effllm.modules.kvcache.formats.base import Dense, Format
from effllm.modules.kvcache.formats.spark import SparkKeys
from effllm.modules.kvcache.queries import GroupReduce, channel_weight
from effllm.modules.kvcache.segment import Segment
from effllm.modules.ranges import Dtype, NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Compression:
    """Any eviction with any format of keys and any format of values.

    Args:
        keys: format of stored keys.
        values: format of stored values.
        evict: tokens that stay; null keeps all.
        storage: dtype of what is stored dense, such as float16; null takes the model's.
        window: last queries that weigh channels (W); the whole prompt if it is shorter.
        group_reduce: how the queries of a group are joined; see `channel_weight`.
        protect_first: first tokens of the prompt that stay dense.
        protect_last: last tokens of the prompt that stay dense. With eviction, of those kept.
        chunk: while decoding, pack this many tokens at a time; 0 leaves new tokens dense, as the
            paper does.
        min_tail: newest tokens that are never packed, so that rollbacks do not reach packed ones.

    Source: SparK (window 32, keys only, evict first). Deviates: `protect_last` is 0 there.
    """

    keys: Format = field(default_factory=lambda: SparkKeys(ratio=0.5))
    values: Format = field(default_factory=Dense)
    evict: Eviction | None = None
    storage: Dtype | None = None
    window: PositiveInt = 32
    group_reduce: GroupReduce = "rms"
    protect_first: NonNegativeInt = 0
    protect_last: NonNegativeInt = 32
    chunk: NonNegativeInt = 0
    min_tail: NonNegativeInt = 64

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"a window of {self.window} queries; 1 or more are needed")
        if min(self.protect_first, self.protect_last, self.chunk, self.min_tail) < 0:
            raise ValueError("protect_first, protect_last, chunk and min_tail must not be negative")
        if self.chunk and not (self.keys.per_token and self.values.per_token):
            raise ValueError("tokens can be packed while decoding only in formats with a row each")

    @property
    def observed(self) -> int:
        """Queries that must be remembered until the prompt is packed."""
        return max(self.window, self.evict.window if self.evict else 1)

    def dtype(self, given: torch.dtype) -> torch.dtype:
        """Dtype of what is stored dense."""
        return given if self.storage is None else getattr(torch, self.storage)

    def token_bytes(self, channels: int, width: int) -> float:
        """Bytes of a compressed token per key head, keys and values, by formula."""
        return self.keys.row_bytes(channels, width) + self.values.row_bytes(channels, width)


@dataclass(frozen=True)
class CompressedPrompt:
    """What one layer keeps of a prompt.

    Attributes:
        past: compressed keys and values.
        past_valid: (B, Hkv, S) bool of the compressed tokens; None without padding.
        dense: keys and values of the protected tokens, (B, Hkv, n, D) each.
        dense_valid: (B, Hkv, n) bool; None without padding. It may differ between heads after
            eviction.
        first: of the protected tokens, those of the start of the prompt.
        weight: (B, Hkv, D) of `channel_weight`.
    """

    past: tuple[Segment, Segment]
    past_valid: Tensor | None
    dense: tuple[Tensor, Tensor]
    dense_valid: Tensor | None
    first: int
    weight: Tensor


def compress_prompt(seen: Prefill, method: Compression) -> CompressedPrompt:
    """Evict and pack what a layer saw of a prompt; `seen` stays as it is."""
    dtype, valid = method.dtype(seen.keys.dtype), None
    keys, values = seen.keys.to(dtype), seen.values.to(dtype)
    if seen.valid is not None:
        valid = seen.valid.unsqueeze(1).expand(-1, keys.shape[1], -1)
    if method.evict is not None:
        kept = method.evict.keep(seen)
        keys, values = _taken(keys, kept), _taken(values, kept)
        valid = None if valid is None else valid.gather(2, kept)
    tokens = keys.shape[2]
    first = min(method.protect_first, tokens)
    last = max(tokens - method.protect_last, first)
    window = seen.queries[:, :, -method.window :]
    weight = channel_weight(window, keys.shape[1], reduce=method.group_reduce)
    packed = [states[:, :, first:last] for states in (keys, values)]
    if valid is not None:
        # Padding becomes the mean of what is real, so that it does not move channels' means.
        packed = [_mean_where(~valid[:, :, first:last], states) for states in packed]
    if valid is not None and bool(valid.all()):
        valid = None
    return CompressedPrompt(
        past=(method.keys.encode(packed[0], weight), method.values.encode(packed[1], weight)),
        past_valid=None if valid is None else valid[:, :, first:last].clone(),
        dense=(_ends(keys, first, last), _ends(values, first, last)),
        dense_valid=None if valid is None else _ends(valid, first, last),
        first=first,
        weight=weight,
    )


def _ends(states: Tensor, first: int, last: int) -> Tensor:
    """Tokens before `first` and from `last` on."""
    return torch.cat([states[:, :, :first], states[:, :, last:]], dim=2)


def _taken(states: Tensor, kept: Tensor) -> Tensor:
    index = kept.unsqueeze(-1).expand(-1, -1, -1, states.shape[-1])
    return states.gather(2, index)


def _mean_where(padding: Tensor, states: Tensor) -> Tensor:
    """(B, Hkv, S, D) states with padding replaced by the mean of the other tokens."""
    hidden = padding.unsqueeze(-1)
    real = (~hidden).sum(dim=2, keepdim=True).clamp_min(1)
    mean = states.float().masked_fill(hidden, 0.0).sum(dim=2, keepdim=True) / real
    return torch.where(hidden, mean.to(states.dtype), states)
