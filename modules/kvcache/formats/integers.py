"""Numbers of few bits: good for values by token, for keys by channel (KIVI)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from effllm.modules.kvcache.formats.base import Format, Head
from effllm.modules.kvcache.quantisation import (
    BITS,
    RANGE_BYTES,
    dequantise_rows,
    quantise_rows,
    row_bytes,
)
from effllm.modules.kvcache.segment import Segment
from effllm.modules.ranges import PositiveInt


@dataclass(frozen=True, kw_only=True)
class TokenIntegers(Format):
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


@dataclass(frozen=True, kw_only=True)
class ChannelIntegers(Format):
    """Each channel rounded over runs of tokens, as KIVI does with keys.

    Tokens that do not fill a run stay dense.

    Args:
        bits: 2, 3, 4 or 8.
        group: tokens that share a range.

    Source: KIVI (arXiv 2402.02750).
    """

    per_token: ClassVar[bool] = False  # a run of tokens is rounded together

    bits: PositiveInt
    group: PositiveInt = 32

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"integers of {self.bits} bits; there are 2, 3, 4 and 8")

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
