"""The store: results on disk, each complete or absent.

Life of a result: lock its digest, work in `work/<stage>-<digest12>/`, write the payload, write
`manifest.json` last, rename the folder to `artifacts/<stage>/<digest12>/`; all of it synced to the
disk in this order. A result is complete when its manifest stands at the final place. Published
folders are never edited. What stands there without a manifest that can be used is no result: it is
moved to `trash/` and made again.
"""

import difflib
import hashlib
import json
import os
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from effllm.modules.errors import ArtifactError
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.engine.identity import DIGEST_LENGTH
from effllm.pipelines.engine.interrupts import raise_if_asked
from effllm.pipelines.files import (
    iterate_files,
    make_folder,
    remove,
    replace_synced,
    sync,
    write_json,
)

MANIFEST = "manifest.json"
RUN_LOCK = "run.lock"
# What may stand in a work folder besides the payload; it never becomes part of a result.
NOT_PAYLOAD = ("progress", "error.json", "work.json", "manifest.partial")
# What every reader of a manifest relies on.
_PARTS = {
    "stage": str,
    "instance": str,
    "kind": str,
    "target": str,
    "digest": str,
    "config": dict,
    "inputs": dict,
    "sources": dict,
    "outputs": dict,
    "metrics": dict,
    "warnings": list,
    "code": dict,
    "env": dict,
    "timing": dict,
}


@dataclass
class Store:
    """Artifacts, work folders and locks below one output folder."""

    root: Path
    _verified: set[Path] = field(default_factory=set)

    @property
    def artifacts(self) -> Path:
        """Folder of published results."""
        return self.root / "artifacts"

    def folder(self, stage: str, digest: str) -> Path:
        """Final place of a result."""
        return self.artifacts / stage / digest[:DIGEST_LENGTH]

    def work(self, stage: str, digest: str) -> Path:
        """Work folder of a result in the making."""
        return self.root / "work" / f"{stage}-{digest[:DIGEST_LENGTH]}"

    def manifest(self, stage: str, digest: str) -> dict[str, Any] | None:
        """Manifest of a complete result, or None; one that cannot be used is none.

        Raises:
            ArtifactError: if this user may not read it.
        """
        return usable_manifest(self.folder(stage, digest), stage, digest)[0]

    def discard_unusable(self, stage: str, digest: str) -> str | None:
        """Take what is no result from the place of one; says what was done, None if nothing was."""
        folder = self.folder(stage, digest)
        manifest, why = usable_manifest(folder, stage, digest)
        if manifest is not None or not os.path.lexists(folder):
            return None
        trash = self.to_trash(folder)
        return f"{stage}/{folder.name} {why}; moved to {trash.relative_to(self.root)}, made again"

    def open(self, stage: str, digest: str, kind: type[Artifact] = Artifact) -> Artifact:
        """A reader for a complete result whose payload was verified in this process.

        Raises:
            ArtifactError: if it is missing or damaged; names the file.
        """
        manifest = self.manifest(stage, digest)
        folder = self.folder(stage, digest)
        if manifest is None:
            raise ArtifactError(f"{stage}/{digest[:12]} is not in the store ({self.root})")
        if folder not in self._verified:
            refuse_damage(folder, manifest, verify_payload(folder, manifest))
            self._verified.add(folder)
        return kind(folder, manifest)

    def check_quickly(self, stage: str, digest: str) -> dict[str, Any] | None:
        """Manifest of a complete result after a check that reads no unchanged payload.

        Sizes must match, and a file changed after the manifest was written is hashed.

        Raises:
            ArtifactError: if a file is missing, truncated or edited; names the file.
        """
        manifest = self.manifest(stage, digest)
        if manifest is not None:
            folder = self.folder(stage, digest)
            refuse_damage(folder, manifest, verify_payload(folder, manifest, hash_all=False))
        return manifest

    def require_writable(self) -> None:
        """Refuse an output folder that cannot be written to, before any work is done.

        Raises:
            ArtifactError: names the folder and the option that chooses another.
        """
        try:
            for folder in (self.root / "locks", self.root / "work", self.artifacts):
                make_folder(folder)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            device = (self.root / "work").stat().st_dev
            places = [self.artifacts, self.root / "trash", *self.artifacts.glob("*")]
            elsewhere = [path for path in places if path.exists() and path.stat().st_dev != device]
        except OSError as error:
            raise ArtifactError(
                f"cannot write to {self.root} ({error.strerror}); choose a folder with "
                "paths.outputs=…"
            ) from error
        if elsewhere:
            raise ArtifactError(
                f"{elsewhere[0]} is on another file system than {self.root / 'work'}, and results "
                "are moved there in one step: move the whole folder and set paths.outputs=…"
            )

    @contextmanager
    def lock(
        self, stage: str, digest: str, waiting: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Hold the right to produce a result; `waiting()` is called once if another holds it."""
        path = self.root / "locks" / f"{stage}-{digest[:DIGEST_LENGTH]}.lock"
        make_folder(path.parent)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting()
            while not lock.is_locked:
                raise_if_asked()
                with suppress(Timeout):
                    lock.acquire(timeout=1)
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def registering(self) -> Iterator[None]:
        """While a run finds out what is there and says what it needs, or garbage is collected."""
        make_folder(self.root / "locks")
        with FileLock(self.root / "locks" / "registering.lock"):
            yield

    def publish(self, work: Path, manifest: dict[str, Any]) -> Path:
        """Make the payload in `work` a complete result: manifest last, then one rename.

        Progress is removed only when the manifest is written, so that a kill at any moment loses
        nothing: `finish_publishing` goes on from here. What the manifest says is on the disk before
        it is, so that a power cut loses nothing either. A result that stands there already
        (`refresh`) is moved to the trash first.
        """
        partial = work / NOT_PAYLOAD[-1]
        partial.touch()
        readable = stat.S_IMODE(partial.stat().st_mode)  # of a new file here
        payload = [
            file
            for file in iterate_files(work)
            if file.relative_to(work).parts[0] not in (*NOT_PAYLOAD, MANIFEST)
        ]
        manifest["outputs"] = {}
        for file in payload:
            if file.is_symlink():
                raise ArtifactError(f"{work.name}/{file.name} is a link: results hold files only")
            mode = stat.S_IMODE(file.stat().st_mode)
            if mode | readable != mode:  # libraries make files that their owner alone can read
                file.chmod(mode | readable)
            sync(file)
            manifest["outputs"][file.relative_to(work).as_posix()] = {
                "bytes": file.stat().st_size,
                "sha256": _sha256(file),
            }
        for folder in {parent for file in payload for parent in file.relative_to(work).parents}:
            sync(work / folder)
        write_json(partial, manifest)
        replace_synced(partial, work / MANIFEST)
        return self._move(work, manifest["stage"], manifest["digest"])

    def finish_publishing(self, stage: str, digest: str) -> bool:
        """Publish a work folder whose manifest was written before its process was killed."""
        work = self.work(stage, digest)
        manifest, _ = usable_manifest(work, stage, digest)
        if manifest is None or verify_payload(work, manifest, ignored=NOT_PAYLOAD):
            return False
        self._move(work, stage, digest)
        return True

    def _move(self, work: Path, stage: str, digest: str) -> Path:
        for name in NOT_PAYLOAD:
            if os.path.lexists(work / name):
                remove(work / name)
        sync(work)  # or a power cut would bring some of it back
        final = self.folder(stage, digest)
        make_folder(final.parent)
        if os.path.lexists(final):
            with suppress(OSError):  # what is left in the trash, `effllm gc` removes
                remove(self.to_trash(final))
        os.rename(work, final)
        sync(final.parent)
        self._verified.add(final)  # hashed just now
        return final

    def to_trash(self, path: Path) -> Path:
        """Take a folder away from its place in one step; where it is now."""
        trash = self.root / "trash" / f"{path.parent.name}-{path.name}-{uuid.uuid4().hex}"
        make_folder(trash.parent)
        os.rename(path, trash)
        self._verified.discard(path)
        return trash

    def folders(self) -> list[Path]:
        """Whatever stands at the place of a result, by stage and digest."""
        return sorted(self.artifacts.glob("*/*"))

    def manifests(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Folder and manifest of every complete result, by stage and digest."""
        for folder in self.folders():
            manifest, _ = usable_manifest(folder, folder.parent.name, folder.name)
            if manifest is not None:
                yield folder, manifest

    def find(self, reference: str) -> tuple[Path, dict[str, Any]]:
        """The one result that `[<stage>/]<digest prefix>` names.

        Raises:
            ArtifactError: if none or several match.
        """
        stage, _, digest = reference.rpartition("/")
        stored = list(self.manifests())
        found = [
            (folder, manifest)
            for folder, manifest in stored
            if manifest["digest"].startswith(digest) and stage in ("", manifest["stage"])
        ]
        if len(found) != 1:
            close = difflib.get_close_matches(stage, {one["stage"] for _, one in stored}, n=1)
            meant = f", did you mean {close[0]}/{digest}?" if close and not found else ";"
            number = len(found) or "no"
            raise ArtifactError(
                f"{reference}: {number} results match{meant} see `effllm ls` for digests"
            )
        return found[0]


@contextmanager
def live_run(folder: Path) -> Iterator[Path]:
    """Hold a run folder while its run lives; another one if two began in the same microsecond."""
    while True:
        make_folder(folder)
        lock = FileLock(folder / RUN_LOCK)
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            folder = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:6]}")
    try:
        yield folder
    finally:
        lock.release()


def is_held(lock: Path) -> bool:
    """Whether a living process holds a lock; a lock that cannot be tried may be held."""
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except OSError:  # filelock's Timeout is one too
        return True


def verify_payload(
    folder: Path,
    manifest: Mapping[str, Any],
    *,
    hash_all: bool = True,
    ignored: Collection[str] = (),
) -> list[str]:
    """Problems of a published folder, one sentence each; empty if it is as published.

    Args:
        folder: the published folder.
        manifest: its manifest.
        hash_all: hash every file; otherwise only those changed after the manifest was written.
        ignored: what may stand in the folder besides.
    """
    published = (folder / MANIFEST).stat().st_mtime_ns
    hash_all = hash_all or published > time.time_ns()  # a clock that was wrong orders nothing
    problems = []
    for name, expected in manifest["outputs"].items():
        file = folder / name
        try:
            if not file.is_file():
                problems.append(f"file {name} is missing")
            elif (size := file.stat().st_size) != expected["bytes"]:
                problems.append(f"file {name}: expected {expected['bytes']} bytes, found {size}")
            elif (hash_all or file.stat().st_mtime_ns > published) and (
                found := _sha256(file)
            ) != expected["sha256"]:
                problems.append(
                    f"file {name}: expected sha256 {expected['sha256'][:12]}, found {found[:12]}"
                )
        except OSError as error:
            problems.append(f"file {name} cannot be read ({error.strerror})")
    known = {*manifest["outputs"], MANIFEST}
    for file in iterate_files(folder):
        place = file.relative_to(folder)
        if place.as_posix() not in known and place.parts[0] not in ignored:
            problems.append(f"file {place.as_posix()} was added after publishing")
    return problems


def refuse_damage(folder: Path, manifest: Mapping[str, Any], problems: list[str]) -> None:
    """Raise ArtifactError, with the remedy, if there are problems."""
    if problems:
        raise ArtifactError(
            f"{manifest['stage']}/{manifest['digest'][:12]} ({manifest['instance']}) is damaged: "
            f"{'; '.join(problems)}; make it again with "
            f"execute.refresh=[{manifest['instance']}]"
        )


def usable_manifest(folder: Path, stage: str, digest: str) -> tuple[dict[str, Any] | None, str]:
    """The manifest of a folder, if it is one of the result that was asked for, or else why not.

    Args:
        folder: a work folder or the place of a result.
        stage: the stage that the result is of.
        digest: its digest, or the first digits of it.

    Raises:
        ArtifactError: if this user may not read it.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return None, f"has no {MANIFEST}"
    except OSError as error:
        raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        return None, f"has a {MANIFEST} that cannot be read"
    if not isinstance(manifest, dict):
        return None, f"has a {MANIFEST} that cannot be read"
    for part, kind in _PARTS.items():
        if not isinstance(manifest.get(part), kind):
            return None, f"has a {MANIFEST} without {part}"
    if "fingerprint" not in manifest["code"] or "seconds" not in manifest["timing"]:
        return None, f"has a {MANIFEST} without code.fingerprint or timing.seconds"
    for name, entry in manifest["outputs"].items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or not place.parts:
            return None, f"has a {MANIFEST} that names {name!r}, outside of its folder"
        entry = entry if isinstance(entry, dict) else {}
        if not isinstance(entry.get("bytes"), int) or not isinstance(entry.get("sha256"), str):
            return None, f"has a {MANIFEST} without size or checksum of {name}"
    if manifest["stage"] != stage or not manifest["digest"].startswith(digest):
        found = f"{manifest['stage']}/{manifest['digest'][:DIGEST_LENGTH]}"
        return None, f"has the {MANIFEST} of {found}"
    return manifest, ""


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
