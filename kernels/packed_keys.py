"""Keys with few channels kept per token: packing rows, and scores of queries against packed rows.

A row holds the values of its kept channels in ascending order, a bit per channel that says which
are kept, and a bit per channel that says which of the pruned ones are negative. Every row keeps
equally many channels, so all tensors are rectangular and nothing needs an offset. The torch
functions are the definition; the Triton kernels and the compiled code must equal them. Source:
format ours, after SparK (arXiv 2508.15212).
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from functools import cache, lru_cache

import torch
from torch import Tensor

from effllm.kernels.native import NoCompilerError, load_library

try:
    import triton
    import triton.language as tl
except ImportError:  # Triton is an extra; the torch path needs nothing
    triton = None


_NATIVE = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class _Keys(ctypes.Structure):
    """As in `packed_keys.cpp`."""

    _fields_ = (
        *((name, c_void_p) for name in ("values", "mask", "sign", "gain", "unit")),
        *((name, c_int64) for name in ("heads", "tokens")),
        *((name, c_int32) for name in ("channels", "kept")),
    )


def mask_bytes(channels: int) -> int:
    """Bytes of one bit per channel."""
    return -(-channels // 8)


def pack_bits(flags: Tensor) -> Tensor:
    """(..., D) bool -> (..., ceil(D / 8)) uint8; channel j is bit j % 8 of byte j // 8."""
    missing = -flags.shape[-1] % 8
    padded = torch.nn.functional.pad(flags, (0, missing)) if missing else flags
    octets = padded.reshape(*flags.shape[:-1], mask_bytes(flags.shape[-1]), 8)
    return (octets * _weights(flags.device)).sum(dim=-1, dtype=torch.uint8)


def unpack_bits(octets: Tensor, channels: int, *, off: float = 0.0, on: float = 1.0) -> Tensor:
    """(..., ceil(D / 8)) uint8 -> (..., D) float32 of `off` and `on`."""
    return _expand(octets, channels, _table(off, on, octets.device))


def unpack_flags(octets: Tensor, channels: int) -> Tensor:
    """(..., ceil(D / 8)) uint8 -> (..., D) bool."""
    return _expand(octets, channels, _table(0.0, 1.0, octets.device, boolean=True))


def pack_rows_reference(keys: Tensor, keep: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split rows into kept values and bits.

    Args:
        keys: (..., D).
        keep: (..., D) bool, exactly `kept` True in every row.
        kept: channels kept per row (T).

    Returns:
        (..., T) values with storage of their own, (..., ceil(D / 8)) uint8 keep bits, and as many
        sign bits: set where a channel is pruned and negative.
    """
    # Row-major: channels ascend. An index by flags would look for their places first.
    values = keys.masked_select(keep).reshape(*keys.shape[:-1], kept)
    return values, pack_bits(keep), pack_bits((keys < 0) & ~keep)


def unpack_rows_reference(
    values: Tensor, mask: Tensor, sign: Tensor | None, gain: Tensor | None, unit: Tensor
) -> Tensor:
    """Dense rows again: kept values, and sign times gain times unit where a channel was pruned.

    Args:
        values: (..., S, T) float.
        mask: (..., S, ceil(D / 8)) uint8 keep bits.
        sign: as `mask`, or None: every pruned entry is positive.
        gain: (..., S), or None: it is 1.
        unit: (..., D) float32, of one head.

    Returns:
        (..., S, D) float32.
    """
    channels = unit.shape[-1]
    if sign is None:
        dense = unit.unsqueeze(-2).expand(*mask.shape[:-1], channels).clone()
    else:
        dense = unpack_bits(sign, channels, off=1.0, on=-1.0).mul_(unit.unsqueeze(-2))
    if gain is not None:
        dense.mul_(gain.float().unsqueeze(-1))
    return dense.masked_scatter_(unpack_flags(mask, channels), values.float())


def packed_scores_reference(
    query: Tensor, values: Tensor, mask: Tensor, sign: Tensor, gain: Tensor, unit: Tensor
) -> Tensor:
    """Scores q . k of the queries of a group against packed keys.

    Args:
        query: (N, G, D), N heads of any batch.
        values: (N, S, T).
        mask: (N, S, ceil(D / 8)) uint8 keep bits.
        sign: as `mask`, bits of pruned negative entries.
        gain: (N, S).
        unit: (N, D) float32.

    Returns:
        (N, G, S) float32, not scaled.
    """
    return query.float() @ unpack_rows_reference(values, mask, sign, gain, unit).mT


def packed_scores_native(
    query: Tensor, values: Tensor, mask: Tensor, sign: Tensor, gain: Tensor, unit: Tensor
) -> Tensor:
    """`packed_scores_reference` by compiled code, with keys that exist in registers only.

    Raises:
        NoCompilerError: if the code cannot be compiled here.
    """
    heads, group, channels = query.shape
    tokens, kept = values.shape[1:]
    score = getattr(load_library("packed_keys.cpp"), f"score_{_NATIVE[values.dtype]}")
    query = query.float().contiguous()
    stored = [one.contiguous() for one in (values, mask, sign, gain, unit.float())]
    keys = _Keys(*(one.data_ptr() for one in stored), heads, tokens, channels, kept)
    scores = torch.empty(heads, group, tokens)
    score(
        ctypes.byref(keys), c_void_p(query.data_ptr()),
        c_void_p(scores.data_ptr()), group, torch.get_num_threads(),
    )  # fmt: skip
    return scores


def weighted_sum_native(weights: Tensor, values: Tensor) -> Tensor:
    """`weighted_sum` by compiled code, which reads 16-bit values as they are.

    Raises:
        NoCompilerError: if the code cannot be compiled here.
    """
    heads, group, tokens = weights.shape
    channels = values.shape[2]
    mix = getattr(load_library("packed_keys.cpp"), f"mix_{_NATIVE[values.dtype]}")
    weights, values = weights.contiguous(), values.contiguous()
    mixed = torch.empty(heads, group, channels)
    mix(
        c_void_p(weights.data_ptr()), c_int64(tokens), c_void_p(values.data_ptr()),
        c_void_p(mixed.data_ptr()), c_int64(heads), c_int64(tokens), group, channels,
        torch.get_num_threads(),
    )  # fmt: skip
    return mixed


def packed_scores(
    query: Tensor, values: Tensor, mask: Tensor, sign: Tensor, gain: Tensor, unit: Tensor
) -> Tensor:
    """`packed_scores_reference` by the Triton kernel on a GPU, by compiled code on a CPU.

    Plain torch where neither can be had.
    """
    stored = (query, values, mask, sign, gain, unit)
    if _on_gpu(query):
        return packed_scores_triton(*stored)
    half = torch.bfloat16 if values.dtype == torch.bfloat16 else torch.float16
    if query.device.type == "cpu" and native_reader() and gain.dtype == half:
        return packed_scores_native(*stored)
    return packed_scores_reference(*stored)


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """(N, G, S) float32 weights times (N, S, D) values of any dtype: (N, G, D) float32."""
    if values.device.type == "cpu" and native_reader() and values.shape[2] % 16 == 0:
        return weighted_sum_native(weights, values)
    return weights @ values.float()


@cache
def native_reader() -> bool:
    """Whether compiled code can be had on this machine."""
    try:
        load_library("packed_keys.cpp")
    except NoCompilerError:
        return False
    return True


def pack_rows(keys: Tensor, keep: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """`pack_rows_reference` by the Triton kernel on a GPU, by torch elsewhere."""
    return (pack_rows_triton if _on_gpu(keys) else pack_rows_reference)(keys, keep, kept)


def pack_rows_triton(keys: Tensor, keep: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """`pack_rows_reference` as one pass over the rows."""
    channels, shape = keys.shape[-1], keys.shape[:-1]
    flat = keys.reshape(-1, channels).contiguous()
    flags = keep.reshape(-1, channels).contiguous().view(torch.uint8)
    rows = flat.shape[0]
    values = flat.new_empty(rows, kept)
    mask = flags.new_empty(rows, mask_bytes(channels))
    sign = torch.empty_like(mask)
    if rows:
        width = max(8, triton.next_power_of_2(channels))
        _pack_kernel[(triton.cdiv(rows, _ROWS),)](
            flat, flags, values, mask, sign, rows,
            channels, kept, mask_bytes(channels), WIDTH=width, ROWS=_ROWS,
        )  # fmt: skip
    octets = mask_bytes(channels)
    return values.view(*shape, kept), mask.view(*shape, octets), sign.view(*shape, octets)


def packed_scores_triton(
    query: Tensor, values: Tensor, mask: Tensor, sign: Tensor, gain: Tensor, unit: Tensor
) -> Tensor:
    """`packed_scores_reference` with keys that exist in registers only."""
    heads, group, channels = query.shape
    tokens, kept = values.shape[1:]
    scores = torch.empty(heads, group, tokens, dtype=torch.float32, device=query.device)
    if tokens:
        _scores_kernel[(heads, triton.cdiv(tokens, _ROWS))](
            query.contiguous(), values.contiguous(), mask.contiguous(), sign.contiguous(),
            gain.contiguous(), unit.contiguous(), scores, tokens, group, channels, kept,
            mask.shape[-1], WIDTH=max(8, triton.next_power_of_2(channels)), ROWS=_ROWS,
        )  # fmt: skip
    return scores


_ROWS = 32  # rows of a program


if triton is not None:

    @triton.jit
    def _scores_kernel(
        query, values, mask, sign, gain, unit, scores,
        tokens, group, channels, kept, octets, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        head = tl.program_id(0).to(tl.int64)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        channel = tl.arange(0, WIDTH)
        real = (row < tokens)[:, None] & (channel < channels)[None, :]
        token = head * tokens + row
        place = token[:, None] * octets + (channel // 8)[None, :]
        bit = (channel % 8)[None, :]
        keep = (tl.load(mask + place, mask=real, other=0).to(tl.int32) >> bit) & 1
        negative = (tl.load(sign + place, mask=real, other=0).to(tl.int32) >> bit) & 1
        rank = tl.cumsum(keep, axis=1) - keep  # how many kept channels stand before this one
        value = tl.load(
            values + token[:, None] * kept + rank, mask=real & (keep == 1), other=0.0
        ).to(tl.float32)
        height = tl.load(gain + token, mask=row < tokens, other=0.0).to(tl.float32)
        width = tl.load(unit + head * channels + channel, mask=channel < channels, other=0.0)
        pruned = (1 - 2 * negative).to(tl.float32) * height[:, None] * width[None, :]
        key = tl.where(keep == 1, value, pruned)
        for member in range(group):
            one = tl.load(
                query + (head * group + member) * channels + channel,
                mask=channel < channels,
                other=0.0,
            ).to(tl.float32)
            tl.store(
                scores + (head * group + member) * tokens + row,
                tl.sum(key * one[None, :], axis=1),
                mask=row < tokens,
            )

    @triton.jit
    def _pack_kernel(
        keys, keep, values, mask, sign,
        rows, channels, kept, octets, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    ):  # fmt: skip
        row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        channel = tl.arange(0, WIDTH)
        real = (row < rows)[:, None] & (channel < channels)[None, :]
        place = row[:, None] * channels + channel[None, :]
        key = tl.load(keys + place, mask=real, other=0.0)
        flag = tl.load(keep + place, mask=real, other=0).to(tl.int32)
        rank = tl.cumsum(flag, axis=1) - flag
        tl.store(values + row[:, None] * kept + rank, key, mask=real & (flag == 1))
        negative = ((key < 0) & (flag == 0)).to(tl.int32)
        weight = (1 << (channel % 8))[None, :]
        octet = tl.arange(0, WIDTH // 8)
        target = row[:, None] * octets + octet[None, :]
        inside = (row < rows)[:, None] & (octet < octets)[None, :]
        kept_octets = tl.sum(tl.reshape(flag * weight, (ROWS, WIDTH // 8, 8)), axis=2)
        sign_octets = tl.sum(tl.reshape(negative * weight, (ROWS, WIDTH // 8, 8)), axis=2)
        tl.store(mask + target, kept_octets.to(tl.uint8), mask=inside)
        tl.store(sign + target, sign_octets.to(tl.uint8), mask=inside)


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda and triton is not None


@lru_cache(maxsize=8)
def _weights(device: torch.device) -> Tensor:
    return (2 ** torch.arange(8, device=device)).to(torch.uint8)


@lru_cache(maxsize=32)
def _table(off: float, on: float, device: torch.device, boolean: bool = False) -> Tensor:
    """(256, 8): every byte as eight numbers, or flags."""
    codes = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device)
    flags = (codes & 1).bool()
    return flags if boolean else torch.where(flags, on, off)


def _expand(octets: Tensor, channels: int, table: Tensor) -> Tensor:
    """Rows of the table, one per byte, side by side."""
    flat = table.index_select(0, octets.reshape(-1).int())
    return flat.reshape(*octets.shape[:-1], 8 * octets.shape[-1])[..., :channels]
