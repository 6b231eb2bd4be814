"""C++ sources of this folder as shared libraries: compiled on first use, kept between runs.

Nothing but GCC's C++ compiler is needed: `CXX` if set, else `c++`. Libraries are kept in
`$XDG_CACHE_HOME/effllm` (`~/.cache/effllm`), under a digest of source, compiler, flags and CPU.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17")


class NoCompilerError(Exception):
    """Why a library could not be built here."""


def load_library(source: str) -> ctypes.CDLL:
    """The library of one source file.

    Args:
        source: file name in this folder.

    Raises:
        NoCompilerError: without a compiler, with the compiler's first complaint, or where the
            library cannot be kept.
    """
    return _load(source, _FLAGS)


@cache
def _load(source: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    # PyTorch's OpenMP must be there first: one pool of threads, not two that fight.
    import torch  # noqa: F401

    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        raise NoCompilerError("no C++ compiler found; install g++, or name one in CXX")
    try:
        library = _place(source, compiler, flags)
        if not library.is_file():
            _compile(_FOLDER / source, compiler, flags, library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError) as error:  # no home, a home that cannot be written, a full disk
        raise NoCompilerError(
            f"{error}; XDG_CACHE_HOME names the folder for compiled code"
        ) from error


def _place(source: str, compiler: str, flags: tuple[str, ...]) -> Path:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    headers = [one.read_text() for one in sorted(_FOLDER.glob("*.h"))]
    parts = [(_FOLDER / source).read_text(), *headers, version.stdout, *flags, _cpu()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "effllm" / f"{Path(source).stem}-{digest}.so"


def _compile(source: Path, compiler: str, flags: tuple[str, ...], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        command = [compiler, *flags, str(source), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            complaint = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr)
            raise NoCompilerError(f"{compiler} cannot build {source.name}: {complaint.strip()}")
        with built.open("rb") as written:
            os.fsync(written.fileno())  # or a power cut leaves an empty library for ever
        built.replace(library)


def _cpu() -> str:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join([platform.machine(), *sorted(set(flags))])
