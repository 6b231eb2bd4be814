"""What the disk holds after a power cut at any moment: only what was synced is sure to be there."""

import os
from pathlib import Path

import pytest

from effllm.pipelines.engine.store import Store, verify_payload


class Disk:
    """Remembers what was synced below a folder, and lays out what a power cut may leave of it.

    Two file systems are played: one that keeps every name but no bytes that were not synced (the
    usual one: files are there and empty), and one that keeps no name either whose folder was not
    synced after it was given.
    """

    def __init__(self, root, monkeypatch):
        self.root = root
        self.bytes, self.names = {}, {root.stat().st_ino: {}}  # by inode
        self.moments = []  # called at each moment worth a power cut
        self._open = []  # keeps inodes from being given to other files
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self._record)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._announced(getattr(os, name)))

    def _record(self, descriptor):
        self._announce()
        self._sync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        self._open.append(os.dup(descriptor))
        if path.is_dir():
            self.names[path.stat().st_ino] = {
                entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(path)
            }
        else:
            self.bytes[path.stat().st_ino] = path.read_bytes()
        self._announce()

    def _announced(self, change):
        def announced(source, target):
            self._announce()
            change(source, target)
            self._announce()

        return announced

    def _announce(self):
        for moment in self.moments:
            moment()

    def with_names(self, target):
        """Every name is there; of the bytes what was synced."""
        for path in sorted(self.root.rglob("*")):
            place = target / path.relative_to(self.root)
            if path.is_symlink():
                continue
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(self.bytes.get(path.stat().st_ino, b""))

    def without_names(self, target, inode=None):
        """Names and bytes that were synced."""
        target.mkdir(parents=True, exist_ok=True)
        names = self.names.get(inode or self.root.stat().st_ino, {})
        for name, (number, is_folder) in names.items():
            if is_folder:
                self.without_names(target / name, number)
            else:
                (target / name).write_bytes(self.bytes.get(number, b""))

    def close(self):
        for descriptor in self._open:
            os.close(descriptor)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    root = tmp_path / "disk"
    root.mkdir()
    found = Disk(root, monkeypatch)
    yield found
    found.close()


def complete(root):
    """Stage -> checksums of all results; refuses one that is there and wrong."""
    store, found = Store(root / "outputs"), {}
    for folder, manifest in store.manifests():
        assert verify_payload(folder, manifest) == []
        found[manifest["stage"]] = manifest["outputs"]
    return found


@pytest.mark.parametrize("file_system", ["with_names", "without_names"])
def test_a_power_cut_at_any_moment_loses_nothing(
    pipeline, execute, disk, tmp_path, file_system, monkeypatch
):
    """Results are whole or absent, none that was published is lost, and the same command ends."""
    pipeline = {
        **{name: pipeline[name] for name in ("count", "double")},
        "steps": {"_target_": "toy_stages.Stepwise", "steps": 2, "fault": str(tmp_path / "fault")},
    }
    published, cuts = set(), []
    publish = Store.publish

    def note(store, work, manifest):
        place = publish(store, work, manifest)
        if store.root == disk.root / "outputs":
            published.add(manifest["stage"])
        return place

    def cut():
        target = tmp_path / "after" / str(len(cuts))
        getattr(disk, file_system)(target)
        cuts.append((target, set(published)))

    monkeypatch.setattr(Store, "publish", note)
    disk.moments.append(cut)
    execute(pipeline, store=Store(disk.root / "outputs"))
    cut()
    disk.moments.clear()
    whole = complete(disk.root)
    assert len(cuts) > 60 and published == set(whole) == {"count", "scale", "stepwise"}
    for target, before in cuts:
        found = complete(target)
        assert before <= set(found) and all(found[stage] == whole[stage] for stage in found)
    for target, _ in cuts[::7] + cuts[-1:]:
        execute(pipeline, store=Store(target / "outputs"))
        assert complete(target) == whole


def test_what_was_not_synced_is_what_the_power_cut_takes(disk):
    """The test above sees a missing sync."""
    folder = disk.root / "folder"
    folder.mkdir()
    (folder / "synced").write_text("1")
    (folder / "forgotten").write_text("2")
    for path in (folder / "synced", folder, disk.root):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    (folder / "later").write_text("3")
    disk.with_names(disk.root.parent / "a")
    disk.without_names(disk.root.parent / "b")
    left = {path.name: path.read_text() for path in (disk.root.parent / "a" / "folder").iterdir()}
    assert left == {"synced": "1", "forgotten": "", "later": ""}
    left = {path.name: path.read_text() for path in (disk.root.parent / "b" / "folder").iterdir()}
    assert left == {"synced": "1", "forgotten": ""}
