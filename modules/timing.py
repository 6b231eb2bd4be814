"""Time on a device, and who goes first.

A GPU still works when a call returns, so its clock waits for it. And machines change speed while
they are measured, so what is compared takes turns, and every round begins with another.
"""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Name = TypeVar("Name")


def now(device: torch.device) -> float:
    """Seconds of a clock, read once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work on a device."""
    started = now(device)
    work()
    return now(device) - started


def taking_turns(names: Sequence[Name], number: int) -> list[Name]:
    """All names in the order of round `number`, counted from 0."""
    turn = number % len(names)
    return [*names[turn:], *names[:turn]]
