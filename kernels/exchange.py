"""What every channel would bring to every slot of an N:M group, summed over rows.

The inner loop of searching and learning orders: R x n x m comparisons. The torch function is the
definition; the compiled code must equal it up to the order of sums.
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
    kernel = _kernel() if score.device.type == "cpu" else None
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


@cache
def _kernel() -> ctypes._NamedFuncPointer | None:
    """The compiled function; None without a compiler."""
    try:
        function = load_library("exchange.cpp").exchange_gains
    except NoCompilerError:
        return None
    function.argtypes = [c_void_p] * 5 + [c_int64] * 3
    function.restype = None
    return function
