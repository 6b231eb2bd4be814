"""Whom a channel has to beat in every slot of N:M groups, and what it would bring there.

The inner loops of searching and learning orders, the second of R x n x m comparisons. The torch
functions are the definitions; the compiled code must equal them, up to the order of sums.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from effllm.kernels.native import NoCompilerError, load_library


def exchange_gains(score: Tensor, threshold: Tensor, value: Tensor, held: Tensor) -> Tensor:
    """sum_r [score_ri > threshold_rj] (value_ri - held_rj): channel i moved into slot j.

    Args:
        score: (R, n) float32 of the channels.
        threshold: (R, m) float32 that a channel has to beat to be kept in a slot.
        value: (R, n) float32, what a kept channel is worth.
        held: (R, m) float32, what the channel is worth that it would push out.

    Returns:
        (n, m) float32.
    """
    kernel = _kernel("exchange_gains") if score.device.type == "cpu" else None
    if kernel is None:
        return exchange_gains_reference(score, threshold, value, held)
    tensors = [one.float().contiguous() for one in (score, threshold, value, held)]
    gains = torch.zeros(threshold.shape[1], score.shape[1])
    rows, channels, slots = len(score), score.shape[1], threshold.shape[1]
    kernel(*(one.data_ptr() for one in tensors), gains.data_ptr(), rows, channels, slots)
    return gains.T


def exchange_gains_reference(
    score: Tensor, threshold: Tensor, value: Tensor, held: Tensor
) -> Tensor:
    """The definition, a slot at a time; arguments as for `exchange_gains`."""
    slots = [
        ((score > threshold[:, j, None]) * (value - held[:, j, None])).sum(dim=0)
        for j in range(threshold.shape[1])
    ]
    return torch.stack(slots, dim=1) if slots else score.new_zeros(score.shape[1], 0)


def rivals(score: Tensor, keep: int, group: int) -> tuple[Tensor, Tensor]:
    """What a channel has to beat in each slot: the N-th best of the slot's group without it.

    Args:
        score: (R, n) float, in the order of the slots; no NaN.
        keep: N.
        group: M; divides n.

    Returns:
        (R, n) score of that channel, and (R, n) int64, its slot.
    """
    compiled = score.device.type == "cpu" and score.dtype == torch.float32
    kernel = _kernel("rivals") if compiled else None
    if kernel is None:
        return rivals_reference(score, keep, group)
    score = score.contiguous()
    threshold, slot = torch.empty_like(score), torch.empty(score.shape, dtype=torch.int64)
    kernel(score.data_ptr(), threshold.data_ptr(), slot.data_ptr(), *score.shape, group, keep)
    return threshold, slot


def rivals_reference(score: Tensor, keep: int, group: int) -> tuple[Tensor, Tensor]:
    """The definition; arguments as for `rivals`."""
    rows, columns = score.shape
    grouped = score.reshape(rows, -1, group)
    ranked = grouped.sort(dim=2, descending=True, stable=True)
    rank = ranked.indices.argsort(dim=2)
    among = torch.where(rank < keep, keep, keep - 1)
    threshold = ranked.values.gather(2, among)
    first = torch.arange(0, columns, group, device=score.device)[None, :, None]
    slot = ranked.indices.gather(2, among) + first
    return threshold.reshape(rows, columns), slot.reshape(rows, columns)


_ARGUMENTS = {
    "exchange_gains": [c_void_p] * 5 + [c_int64] * 3,
    "rivals": [c_void_p] * 3 + [c_int64] * 4,
}


@cache
def _kernel(name: str) -> ctypes._NamedFuncPointer | None:
    """A compiled function; None without a compiler."""
    try:
        function = getattr(load_library("exchange.cpp"), name)
    except NoCompilerError:
        return None
    function.argtypes = _ARGUMENTS[name]
    function.restype = None
    return function
