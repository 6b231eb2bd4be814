"""Files of results: JSON and JSONL that refuse NaN, syncs, hard links, listings in name order."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What file systems answer that cannot sync a folder; they order its changes themselves, or nobody.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in the errors of its writing: a full disk does not say which file it was."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read; refuses NaN."""
    with naming(path):
        path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line; refuses NaN."""
    with naming(path), path.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the entries of a folder, are on the disk."""
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                raise
        finally:
            os.close(descriptor)


def replace_synced(partial: Path, final: Path) -> None:
    """Put a written file at its place: after a power cut the old or the new one is there, whole."""
    sync(partial)
    partial.replace(final)
    sync(final.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, so that a power cut leaves them there."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where there are no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with naming(target):
            shutil.copyfile(source, target)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def iterate_files(folder: Path) -> Iterator[Path]:
    """Regular files below a folder, in name order."""
    return iter(sorted(path for path in folder.rglob("*") if path.is_file()))
