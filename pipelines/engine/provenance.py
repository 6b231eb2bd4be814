"""Facts about the machine and the code, for manifests. What cannot be found out is None."""

import importlib.metadata
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from effllm.pipelines.engine.processor import timing_machine

_PACKAGES = ("effllm", "torch", "transformers", "datasets", "lightning", "lm-eval", "safetensors")


def now() -> str:
    """UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def code_version() -> dict[str, Any]:
    """Commit of the source tree and whether it had local changes."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"git_sha": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def environment(device: str) -> dict[str, Any]:
    """Versions, device and threads of this process; torch must be imported already."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: package_version(name) for name in _PACKAGES},
        "device": timing_machine(device)["device"],
        "threads": torch.get_num_threads(),
    }


@cache
def package_version(name: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def reset_peak_memory(device: str) -> None:
    """Start a new high-water mark of resident and device memory, where the system can."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then peak_memory reports the peak of the whole process


def peak_memory() -> int | None:
    """Peak resident bytes since the last reset, or of the whole process."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # only Linux has the file
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def peak_device_memory(device: str) -> int | None:
    """Peak bytes allocated on a CUDA device, or None on others."""
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(device))
