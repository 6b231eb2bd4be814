"""A stage's work folder: whose progress it holds, and why it cannot be written to."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import traceback
from collections.abc import Mapping
from pathlib import Path

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.engine import provenance
from effllm.pipelines.engine.graph import Instance
from effllm.pipelines.engine.identity import canonical_json
from effllm.pipelines.files import make_folder, remove, sync, write_json
from effllm.pipelines.stage import PROGRESS_FOLDER

log = logging.getLogger("effllm")

# Errors of the file system that a person can repair.
CANNOT_WRITE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
)


def prepare_work(work: Path, instance: Instance, inputs: str) -> bool:
    """Make the work folder ready; True if progress of an earlier attempt is kept.

    Progress made by other code or from other inputs is thrown away, and so are half-written
    payload files.

    Args:
        work: the work folder.
        instance: what will run in it.
        inputs: digest of the inputs' payloads.
    """
    record = work / "work.json"
    wanted = {"instance": instance.name, "code": instance.code, "inputs": inputs}
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        same = all(found[key] == wanted[key] for key in ("code", "inputs"))
    except (OSError, ValueError, KeyError):
        same = False
    progress = work / PROGRESS_FOLDER
    if work.exists():
        for path in work.iterdir():
            if path == progress and same:
                continue
            remove(path)
    make_folder(work)
    sync(work)  # other progress is gone before the record says whose progress this is
    write_json(record, wanted)
    sync(record)
    return progress.is_dir() and any(progress.iterdir())


def payload_digest(inputs: Mapping[str, Artifact | list[Artifact]]) -> str:
    """Digest of what the inputs hold, not of how they were made."""
    outputs = {
        slot: [one.manifest["outputs"] for one in (value if isinstance(value, list) else [value])]
        for slot, value in inputs.items()
    }
    return hashlib.sha256(canonical_json(outputs).encode()).hexdigest()


def record_error(work: Path, error: BaseException) -> None:
    """Leave a note in the work folder, if it can still be written to."""
    note = {"type": type(error).__name__, "message": str(error), "time": provenance.now()}
    try:
        write_json(work / "error.json", note)
    except OSError:
        log.warning("could not write error.json")


def why_it_cannot_write(error: BaseException, work: Path) -> str | None:
    """File, reason and remedy, if an error is that of a full or read-only disk.

    Args:
        error: of a stage.
        work: its work folder.
    """
    code = re.search(r"\(os error (\d+)\)", str(error))  # Rust's libraries have errors of their own
    number = error.errno if isinstance(error, OSError) else int(code[1]) if code else None
    if number not in CANNOT_WRITE:
        return None
    named = error.filename if isinstance(error, OSError) else None
    file = Path(named) if named else _file_in_hand(error, work)
    if file != work and work not in file.parents:
        return f"{file}: {os.strerror(number)}; see that it can be read and written"
    return (
        f"cannot write {file.relative_to(work.parent)}: {os.strerror(number)}; free some space or "
        "choose another folder with paths.outputs=…"
    )


def _file_in_hand(error: BaseException, folder: Path) -> Path:
    """The file below a folder that the innermost call was about: few libraries name it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for value in frame.f_locals.values():
            if isinstance(value, str | Path) and folder in Path(value).parents:
                return Path(value)
    return folder
