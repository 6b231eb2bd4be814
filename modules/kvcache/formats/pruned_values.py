"""SparK's values: the largest entries of each token, the mean of the others for them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from effllm.kernels.packed_keys import mask_bytes, pack_rows, unpack_rows_reference
from effllm.modules.kvcache.formats.base import Dense, Format, Head
from effllm.modules.kvcache.segment import Segment
from effllm.modules.kvcache.selection import keep_largest, kept_channels
from effllm.modules.ranges import Ratio


@dataclass(frozen=True, kw_only=True)
class PrunedValues(Format):
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
