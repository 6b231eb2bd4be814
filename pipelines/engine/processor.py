"""This machine, told without importing torch: what it computes in, and what measures its times.

`auto` in a configuration becomes bfloat16 or float32.

Without bfloat16 instructions, which most laptops lack, passes over many tokens take several times
as long in bfloat16 as in float32 and round otherwise. The type that was chosen stands in the fields
of the stages, and so in their digests. Decoding reads more memory than it computes and has a type
of its own (`budget.decode_dtype`).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86, x86, ARM
_AUTO = {"dtype": ("float32", "bfloat16"), "precision": ("32-true", "bf16-mixed")}


def settle_types(fields: Any, *, able: bool) -> None:
    """Replace every `dtype: auto` and `precision: auto` in nested plain data, in place.

    Args:
        fields: of a pipeline.
        able: whether the machine computes in bfloat16.
    """
    if isinstance(fields, list):
        for one in fields:
            settle_types(one, able=able)
    elif isinstance(fields, dict):
        for name, value in fields.items():
            if value == "auto" and name in _AUTO:
                fields[name] = _AUTO[name][able]
            else:
                settle_types(value, able=able)


def wanted_device(trainer: Mapping[str, Any]) -> str:
    """The device of a `conf/trainer`: auto, cpu or cuda; the first of several: auto:1, cuda:1."""
    kind, devices = trainer["accelerator"].replace("gpu", "cuda"), trainer["devices"]
    return f"{kind}:{devices[0]}" if isinstance(devices, list) and kind != "cpu" else str(kind)


def computes_in_bfloat16(device: str, *, root: Path = Path("/")) -> bool:
    """Whether bfloat16 is as fast as float32 or faster here; torch is not imported.

    Args:
        device: see `wanted_device`.
        root: of the file system; for tests.
    """
    return (device != "cpu" and _has_cuda(root)) or _has_instructions(root)


def timing_machine(device: str, *, root: Path = Path("/")) -> dict[str, str | int | bool]:
    """What a time depends on besides the recipe: device, threads, and a compiler for the steps.

    Args:
        device: see `wanted_device`.
        root: of the file system; for tests.
    """
    kind, _, number = device.partition(":")
    if kind == "cuda" or (kind == "auto" and _has_cuda(root)):
        cards = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
        chosen = int(number or 0)
        text = cards[chosen].read_text() if chosen < len(cards) else ""
        return {"device": _line("Model", text) or device}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    file = root / "proc/cpuinfo"
    text = file.read_text() if file.is_file() else ""
    return {
        "device": _line("model name", text) or platform.machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or cores or 1),
        "compiler": shutil.which(os.environ.get("CXX") or "c++") is not None,
    }


def _line(key: str, text: str) -> str:
    """Value of the first line `key: value`."""
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _has_cuda(root: Path) -> bool:
    """Whether there is an NVIDIA driver, and a torch that can use it."""
    return (root / "proc/driver/nvidia/version").is_file() and "+cpu" not in version("torch")


def _has_instructions(root: Path) -> bool:
    """Whether the processor says so; one that says nothing (not Linux) counts as unable."""
    file = root / "proc/cpuinfo"
    if not file.is_file():
        return False
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", file.read_text(), re.MULTILINE)
    return line is not None and not _INSTRUCTIONS.isdisjoint(line[1].split())
