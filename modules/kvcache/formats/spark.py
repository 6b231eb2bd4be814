"""SparK's packed keys: some channels of each token, a sign bit and a shared gain for the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.kernels.packed_keys import (
    mask_bytes,
    pack_rows,
    packed_scores,
    unpack_rows_reference,
)
from effllm.modules.kvcache.formats.base import Dense, Format, Head
from effllm.modules.kvcache.quantisation import dequantise_rows, quantise_rows, row_bytes
from effllm.modules.kvcache.recovery import Recovery, channel_unit, token_gain
from effllm.modules.kvcache.segment import Segment
from effllm.modules.kvcache.selection import Saliency, keep_largest, kept_channels, saliency
from effllm.modules.ranges import PositiveInt, Ratio

_CHUNK = 1024  # tokens packed at a time: bounds what the scores of channels take


@dataclass(frozen=True, kw_only=True)
class SparkKeys(Format):
    """SparK: T channels per token as they are, one sign bit and a shared gain for the others.

    Args:
        ratio: share of channels pruned, 0 <= ratio < 1; 0 stores dense keys, bit for bit.
        saliency: how channels are ranked; see `selection.saliency`.
        recovery: what pruned entries are taken to be; see `recovery`.
        signed: keep the signs of pruned entries; without them they are taken as positive.
        centred: subtract each channel's mean over the tokens first and add it back on reading.
        bits: of the kept values: null keeps the dtype of the cache, else each row is quantised
            after a scale per channel flattened outliers.
        block: tokens that share one choice of channels.

    Source: SparK (arXiv 2508.15212); storage, centring and bits ours.
    Deviates: the defaults are what measured best on real keys, not the paper's formulas.
    """

    ratio: Ratio
    saliency: Saliency = "code"
    recovery: Recovery = "code"
    signed: bool = True
    centred: bool = True
    bits: PositiveInt | None = None
    block: PositiveInt = 1

    def __post_init__(self) -> None:
        kept_channels(64, self.ratio)  # refuses ratios outside [0, 1)

    @property
    def recovers(self) -> bool:
        """Whether each token has a gain, and signs unless they are left out."""
        return self.recovery in ("code", "paper")

    def encode(self, states: Tensor, weight: Tensor, head: Head | None = None) -> Segment:
        """Rows `mask`, `values` (or `codes, range`), `gain`, `sign`; head `unit, mean, scale`."""
        tokens, channels = states.shape[2:]
        kept = kept_channels(channels, self.ratio)
        if kept == channels:
            return Dense().encode(states, weight)
        head = head or self._head(states, weight)
        pieces = [
            self._rows(states[:, :, start : start + _CHUNK], weight, head, kept)
            for start in range(0, max(tokens, 1), _CHUNK)
        ]
        rows = {name: torch.cat([one[name] for one in pieces], dim=2) for name in pieces[0]}
        return Segment(tokens, channels, rows, head)

    def _head(self, states: Tensor, weight: Tensor) -> Head:
        head = {"unit": channel_unit(weight, self.recovery)}
        keys = states.float()
        if self.centred:
            mean = keys.mean(dim=2) if states.shape[2] else torch.zeros_like(weight)
            head["mean"] = mean.to(_half(states.dtype))
            keys = keys - head["mean"].float().unsqueeze(2)
        if self.bits is not None:
            largest = keys.abs().amax(dim=2) if states.shape[2] else torch.ones_like(weight)
            head["scale"] = torch.where(largest > 0, largest, 1.0)
        return head

    def _rows(self, states: Tensor, weight: Tensor, head: Head, kept: int) -> dict[str, Tensor]:
        keys = states
        if "mean" in head:
            keys = (states.float() - head["mean"].float().unsqueeze(2)).to(states.dtype)
        keep = keep_largest(saliency(keys, weight, self.saliency), kept, block=self.block)
        gain = token_gain(keys, keep, weight, self.recovery)
        if "scale" in head:
            keys = keys.float() / head["scale"].unsqueeze(2)
        values, mask, sign = pack_rows(keys, keep, kept)
        rows = {"mask": mask}
        if self.bits is None:
            rows["values"] = values
        else:
            rows["codes"], rows["range"] = quantise_rows(values, self.bits)
        if gain is not None:
            dtype = _half(states.dtype)
            rows["gain"] = gain.clamp_max(torch.finfo(dtype).max).to(dtype)
            if self.signed:
                rows["sign"] = sign
        return rows

    def decode(self, segment: Segment, start: int, stop: int) -> Tensor:
        """Kept entries, recovered entries, and the mean."""
        rows = {name: one[:, :, start:stop] for name, one in segment.rows.items()}
        head = segment.head
        if "states" in rows:
            return rows["states"]
        unit, scale = head["unit"], head.get("scale")
        values = rows.get("values")
        if values is None:
            assert self.bits is not None and scale is not None
            kept = kept_channels(segment.channels, self.ratio)
            values = dequantise_rows(rows["codes"], rows["range"], self.bits, kept)
            unit = unit / scale  # everything is multiplied by the scale below
        keys = unpack_rows_reference(values, rows["mask"], rows.get("sign"), rows.get("gain"), unit)
        if scale is not None:
            keys.mul_(scale.unsqueeze(2))
        if "mean" in head:
            keys.add_(head["mean"].float().unsqueeze(2))
        return keys

    def scores(self, segment: Segment, query: Tensor) -> Tensor:
        """As of `Format`; packed keys with signs and gains are read as they are."""
        if not {"values", "sign", "gain"} <= segment.rows.keys():
            return super().scores(segment, query)
        rows, (batch, heads) = segment.rows, query.shape[:2]
        stored = (rows["values"], rows["mask"], rows["sign"], rows["gain"], segment.head["unit"])
        flat = packed_scores(query.flatten(0, 1), *(one.flatten(0, 1) for one in stored))
        found = flat.view(batch, heads, *flat.shape[1:])
        if "mean" in segment.head:
            found += query @ segment.head["mean"].float().unsqueeze(-1)
        return found

    def row_bytes(self, channels: int, width: int) -> float:
        """T values, the keep bits, and as far as stored the sign bits and the gain."""
        kept = kept_channels(channels, self.ratio)
        if kept == channels:
            return channels * width
        values = kept * width if self.bits is None else row_bytes(kept, self.bits)
        signs = mask_bytes(channels) if self.recovers and self.signed else 0
        return values + mask_bytes(channels) + signs + (2 if self.recovers else 0)

    def head_bytes(self, channels: int) -> int:
        """Unit (float32), mean (16 bits) and scale (float32), as far as stored."""
        if kept_channels(channels, self.ratio) == channels:
            return 0
        return channels * (4 + 2 * self.centred + 4 * (self.bits is not None))


def _half(dtype: torch.dtype) -> torch.dtype:
    """The 16-bit dtype that goes with a dtype."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
