"""Numbers of a few bits: asymmetric rounding of rows, packed into bytes without gaps.

A row becomes codes 0 … 2^n - 1 and two float16 numbers, its smallest value and its step.
"""

from __future__ import annotations

import torch
from torch import Tensor

RANGE_BYTES = 4  # smallest value and step of a row, float16 each
BITS = (2, 3, 4, 8)


def row_bytes(count: int, bits: int) -> int:
    """Bytes of a quantised row of `count` numbers."""
    return -(-count * bits // 8) + RANGE_BYTES


def quantise_rows(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round rows to `bits` bits each.

    Args:
        rows: (..., N) float.
        bits: 2, 3, 4 or 8.

    Returns:
        (..., ceil(N bits / 8)) uint8 codes, (..., 2) float16 smallest value and step. An entry is
        off by at most half a step, plus the rounding of the two float16 numbers.

    Raises:
        ValueError: for other numbers of bits.
    """
    if bits not in BITS:
        raise ValueError(f"numbers of {bits} bits; there are {', '.join(map(str, BITS))}")
    limit = torch.finfo(torch.float16).max
    rows = rows.float().clamp(-limit, limit)
    low = rows.amin(dim=-1).half().float()
    # Rounded up, so that the largest value is within reach; the smallest normal is never zero.
    step = ((rows.amax(dim=-1) - low) / (2**bits - 1)).clamp(1e-4, limit) * (1 + 2**-10)
    step = step.half().float()
    codes = ((rows - low.unsqueeze(-1)) / step.unsqueeze(-1)).round_().clamp_(0, 2**bits - 1)
    packed = pack_codes(codes.to(torch.uint8), bits)
    return packed, torch.stack([low, step], dim=-1).half()


def dequantise_rows(packed: Tensor, span: Tensor, bits: int, count: int) -> Tensor:
    """Rows of `count` float32 numbers from `quantise_rows`."""
    span = span.float()
    return unpack_codes(packed, bits, count).float().mul_(span[..., 1:]).add_(span[..., :1])


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """(..., N) uint8 below 2^bits -> (..., ceil(N bits / 8)) uint8, lowest bits first."""
    if bits == 8:
        return codes.clone()
    flags = (codes.unsqueeze(-1) >> _shifts(bits, codes)) & 1  # (..., N, bits)
    flat = flags.flatten(-2)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[-1] % 8))
    octets = flat.reshape(*flat.shape[:-1], flat.shape[-1] // 8, 8)
    return (octets << _shifts(8, codes)).sum(dim=-1, dtype=torch.uint8)


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """(..., ceil(N bits / 8)) uint8 -> (..., N) uint8."""
    if bits == 8:
        return packed
    if bits in (2, 4):  # a byte holds whole codes
        codes = (packed.unsqueeze(-1) >> (bits * _shifts(8 // bits, packed))) & (2**bits - 1)
        return codes.flatten(-2)[..., :count]
    flags = ((packed.unsqueeze(-1) >> _shifts(8, packed)) & 1).flatten(-2)
    wanted = flags[..., : count * bits].reshape(*flags.shape[:-1], count, bits)
    return (wanted << _shifts(bits, packed)).sum(dim=-1, dtype=torch.uint8)


def _shifts(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=like.device)
