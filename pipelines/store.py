"""The store: results on disk, each complete or absent.

Life of a result: lock its digest, work in `work/<stage>-<digest12>/`, write the payload, write
`manifest.json` last, rename the folder to `artifacts/<stage>/<digest12>/`. A result is complete
when its manifest stands at the final place. Published folders are never edited.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from effllm.modules.errors import ArtifactError
from effllm.pipelines.artifacts import Artifact
from effllm.pipelines.files import iterate_files, write_json
from effllm.pipelines.identity import DIGEST_LENGTH

MANIFEST = "manifest.json"
# What may stand in a work folder besides the payload; it never becomes part of a result.
NOT_PAYLOAD = ("progress", "error.json", "work.json", "manifest.partial")


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
        """Manifest of a complete result, or None.

        Raises:
            ArtifactError: if the manifest cannot be read, or belongs to another recipe.
        """
        file = self.folder(stage, digest) / MANIFEST
        if not file.is_file():
            return None
        manifest = _read_manifest(file)
        if not manifest["digest"].startswith(digest):
            raise ArtifactError(f"{stage}/{digest[:12]}: the manifest names another recipe")
        return manifest

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
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / "locks"):
                pass
        except OSError as error:
            raise ArtifactError(
                f"cannot write to {self.root} ({error.strerror}); choose a folder with "
                "paths.outputs=…"
            ) from error

    @contextmanager
    def lock(
        self, stage: str, digest: str, waiting: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Hold the right to produce a result; `waiting()` is called once if another holds it."""
        path = self.root / "locks" / f"{stage}-{digest[:DIGEST_LENGTH]}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def publish(self, work: Path, manifest: dict[str, Any]) -> Path:
        """Make the payload in `work` a complete result: manifest last, then one rename.

        Progress is removed only when the manifest is written, so that a kill at any moment loses
        nothing: `finish_publishing` goes on from here. A result that stands there already
        (`refresh`) is moved to the trash first.
        """
        payload = [
            file
            for file in iterate_files(work)
            if file.relative_to(work).parts[0] not in (*NOT_PAYLOAD, MANIFEST)
        ]
        manifest["outputs"] = {
            str(file.relative_to(work)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in payload
        }
        partial = work / NOT_PAYLOAD[-1]
        write_json(partial, manifest)
        partial.rename(work / MANIFEST)
        return self._move(work, manifest)

    def finish_publishing(self, stage: str, digest: str) -> bool:
        """Publish a work folder whose manifest was written before its process was killed."""
        work = self.work(stage, digest)
        if not (work / MANIFEST).is_file():
            return False
        manifest = _read_manifest(work / MANIFEST)
        _remove_progress(work)
        if manifest["digest"] != digest or verify_payload(work, manifest):
            return False
        self._move(work, manifest)
        return True

    def _move(self, work: Path, manifest: Mapping[str, Any]) -> Path:
        _remove_progress(work)
        final = self.folder(manifest["stage"], manifest["digest"])
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            self._discard(final)
        os.rename(work, final)
        self._verified.add(final)  # hashed just now
        return final

    def _discard(self, folder: Path) -> None:
        trash = self.root / "trash" / f"{folder.parent.name}-{folder.name}-{os.getpid()}"
        trash.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, trash)
        self._verified.discard(folder)
        shutil.rmtree(trash)

    def manifests(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Folder and manifest of every complete result, by stage and digest."""
        for file in sorted(self.artifacts.glob(f"*/*/{MANIFEST}")):
            yield file.parent, _read_manifest(file)

    def find(self, reference: str) -> tuple[Path, dict[str, Any]]:
        """The one result that `[<stage>/]<digest prefix>` names.

        Raises:
            ArtifactError: if none or several match.
        """
        stage, _, digest = reference.rpartition("/")
        found = [
            (folder, manifest)
            for folder, manifest in self.manifests()
            if manifest["digest"].startswith(digest) and stage in ("", manifest["stage"])
        ]
        if len(found) != 1:
            raise ArtifactError(
                f"{reference}: {len(found) or 'no'} results match; see `effllm ls` for digests"
            )
        return found[0]


def verify_payload(
    folder: Path, manifest: Mapping[str, Any], *, hash_all: bool = True
) -> list[str]:
    """Problems of a published folder, one sentence each; empty if it is as published.

    Args:
        folder: the published folder.
        manifest: its manifest.
        hash_all: hash every file; otherwise only those changed after the manifest was written.
    """
    published = (folder / MANIFEST).stat().st_mtime_ns
    problems = []
    for name, expected in manifest["outputs"].items():
        file = folder / name
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
    known = {*manifest["outputs"], MANIFEST}
    problems += [
        f"file {name} was added after publishing"
        for name in (str(file.relative_to(folder)) for file in iterate_files(folder))
        if name not in known
    ]
    return problems


def _remove_progress(work: Path) -> None:
    for name in NOT_PAYLOAD:
        path = work / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()


def refuse_damage(folder: Path, manifest: Mapping[str, Any], problems: list[str]) -> None:
    """Raise ArtifactError, with the remedy, if there are problems."""
    if problems:
        raise ArtifactError(
            f"{manifest['stage']}/{manifest['digest'][:12]} ({manifest['instance']}) is damaged: "
            f"{'; '.join(problems)}; make it again with "
            f"execute.refresh=[{manifest['instance']}]"
        )


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or "digest" not in manifest or "outputs" not in manifest:
            raise ValueError("not a manifest")
        return manifest
    except ValueError as error:
        raise ArtifactError(
            f"{file.parent.parent.name}/{file.parent.name}: manifest.json cannot be read "
            f"({error}); delete that folder and run again"
        ) from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
