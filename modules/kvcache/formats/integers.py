"""Formats that SparK is compared or combined with: ThinK, rounded numbers, pruned values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.kernels.packed_keys import mask_bytes, pack_rows, unpack_rows_reference
from effllm.modules.kvcache.formats import Dense, Head
from effllm.modules.kvcache.quantisation import (
    BITS,
    RANGE_BYTES,
    dequantise_rows,
    quantise_rows,
    row_bytes,
)
from effllm.modules.kvcache.segment import Segment
from effllm.modules.kvcache.selection import keep_largest, kept_channels
from effllm.modules.ranges import PositiveInt, Ratio, Share


@dataclass(frozen=True, kw_only=True)
class ThinkKeys:
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

    @property
    def per_token(self) -> bool:
        """Yes."""
        return True

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


@dataclass(frozen=True, kw_only=True)
class PrunedValues:
    """SparK's value pruning: the largest entries of each value, the mean of the others for them.

    Importance of an entry: 0.7 |v| + 0.3 of the mean of its channel's variance over tokens and its
    token's variance over channels, over the largest such mean of the head.

    Args:
        ratio: share of channels pruned.

    Source: SparK, official code (`compress_values`, fill 0.65).
    """

    ratio: Ratio

    def __post_init__(self) -> None:
        kept_channels(64, self.ratio)  # refuses ratios outside [0, 1)

    @property
    def per_token(self) -> bool:
        """Yes."""
        return True

    def encode(self, states: Tensor, weight: Tensor, head: Head | None = None) -> Segment:
        """Rows `values`, `mask`, and `fill` in the dtype of the values."""
        tokens, channels = states.shape[2:]
        kept = kept_channels(channels, self.ratio)
        if kept == channels or not tokens:
            return Dense().encode(states, weight)
        values = states.float()
        over_tokens = values.var(dim=2, keepdim=True, correction=0)
        spread = (over_tokens + values.var(dim=3, keepdim=True, correction=0)) / 2
        spread = spread / spread.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12)
        keep = keep_largest(0.7 * values.abs() + 0.3 * spread, kept)
        fill = values.masked_fill(keep, 0.0).sum(dim=-1) / (channels - kept)
        rows, mask, _ = pack_rows(states, keep, kept)
        stored = {"values": rows, "mask": mask, "fill": fill.to(states.dtype)}
        return Segment(tokens, channels, stored)

    def decode(self, segment: Segment, start: int, stop: int) -> Tensor:
        """Each token's mean where a channel was pruned."""
        rows = {name: one[:, :, start:stop] for name, one in segment.rows.items()}
        if "states" in rows:
            return rows["states"]
        unit = rows["fill"].new_ones(*rows["mask"].shape[:2], segment.channels).float()
        return unpack_rows_reference(rows["values"], rows["mask"], None, rows["fill"], unit)

    def row_bytes(self, channels: int, width: int) -> float:
        """T numbers, the keep bits, and the mean."""
        kept = kept_channels(channels, self.ratio)
        return channels * width if kept == channels else (kept + 1) * width + mask_bytes(channels)

    def head_bytes(self, channels: int) -> int:
        """None."""
        return 0


@dataclass(frozen=True, kw_only=True)
class TokenIntegers:
    """Each token rounded on its own, in groups of neighbouring channels.

    Args:
        bits: 2, 3, 4 or 8.
        group: channels that share a range; the last group may be smaller.
    """

    bits: PositiveInt
    group: PositiveInt = 64

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"integers of {self.bits} bits; there are 2, 3, 4 and 8")

    @property
    def per_token(self) -> bool:
        """Yes."""
        return True

    def encode(self, states: Tensor, weight: Tensor, head: Head | None = None) -> Segment:
        """Rows `codes<i>` and `range<i>` per group i."""
        rows: dict[str, Tensor] = {}
        for number, part in enumerate(states.split(self.group, dim=-1)):
            rows[f"codes{number}"], rows[f"range{number}"] = quantise_rows(part, self.bits)
        return Segment(states.shape[2], states.shape[3], rows)

    def decode(self, segment: Segment, start: int, stop: int) -> Tensor:
        """The rounded numbers."""
        parts, left = [], segment.channels
        for number in range(len(segment.rows) // 2):
            codes, span = segment.rows[f"codes{number}"], segment.rows[f"range{number}"]
            count = min(left, self.group)
            parts.append(
                dequantise_rows(codes[:, :, start:stop], span[:, :, start:stop], self.bits, count)
            )
            left -= count
        return torch.cat(parts, dim=-1)

    def row_bytes(self, channels: int, width: int) -> float:
        """Codes and range of every group."""
        whole, rest = divmod(channels, self.group)
        return whole * row_bytes(self.group, self.bits) + (
            row_bytes(rest, self.bits) if rest else 0
        )

    def head_bytes(self, channels: int) -> int:
        """None."""
        return 0


@dataclass(frozen=True, kw_only=True)
class ChannelIntegers:
    """Each channel rounded over runs of tokens, as KIVI does with keys.

    Tokens that do not fill a run stay dense.

    Args:
        bits: 2, 3, 4 or 8.
        group: tokens that share a range.

    Source: KIVI (arXiv 2402.02750).
    """

    bits: PositiveInt
    group: PositiveInt = 32

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"integers of {self.bits} bits; there are 2, 3, 4 and 8")

    @property
    def per_token(self) -> bool:
        """No: a run of tokens is rounded together."""
        return False

    def encode(self, states: Tensor, weight: Tensor, head: Head | None = None) -> Segment:
        """Rows `codes`, `range` (B, Hkv, S // group, D, ...) and `rest` (B, Hkv, S % group, D)."""
        batch, heads, tokens, channels = states.shape
        runs = tokens // self.group
        whole = states[:, :, : runs * self.group].reshape(batch, heads, runs, self.group, channels)
        codes, span = quantise_rows(whole.mT, self.bits)
        rest = states[:, :, runs * self.group :].clone()
        return Segment(tokens, channels, {"codes": codes, "range": span, "rest": rest})

    def decode(self, segment: Segment, start: int, stop: int) -> Tensor:
        """The rounded numbers, and the dense rest."""
        codes, span, rest = (segment.rows[name] for name in ("codes", "range", "rest"))
        covered = codes.shape[2] * self.group
        first, last = start // self.group, min(-(-stop // self.group), codes.shape[2])
        parts = []
        if last > first:
            runs = dequantise_rows(
                codes[:, :, first:last], span[:, :, first:last], self.bits, self.group
            )
            states = runs.mT.flatten(2, 3)
            begin = first * self.group
            parts.append(states[:, :, start - begin : min(stop, covered) - begin])
        if stop > covered:
            parts.append(rest[:, :, max(start - covered, 0) : stop - covered].float())
        return torch.cat(parts, dim=2) if parts else rest[:, :, :0].float()

    def row_bytes(self, channels: int, width: int) -> float:
        """Per token of a full run; tokens of the rest take D numbers."""
        return channels * (-(-self.group * self.bits // 8) + RANGE_BYTES) / self.group

    def head_bytes(self, channels: int) -> int:
        """None."""
        return 0
