"""What is done to a cache: which tokens stay, how keys are stored, how values are stored."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from effllm.modules.kvcache.eviction import Eviction
from effllm.modules.kvcache.formats import Dense, Format, SparkKeys
from effllm.modules.kvcache.queries import GroupReduce
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
