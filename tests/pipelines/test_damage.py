"""Stored results that were damaged, cannot be written, or are asked where they come from."""

import json
import os

import pytest

from effllm.modules.errors import (
    ArtifactError,
)
from effllm.pipelines.store import verify_payload


def payload(store, instance):
    return store.manifest(instance.stage, instance.digest)["outputs"]


def only(store, stage):
    """The one published folder of a stage."""
    (folder,) = (store.artifacts / stage).iterdir()
    return folder


@pytest.mark.parametrize("damage", ["truncate", "edit", "delete", "add"])
def test_damage_is_found_named_and_refused(pipeline, execute, store, damage):
    execute(pipeline)
    folder = only(store, "count")
    file = folder / "numbers.json"
    text = file.read_text()
    if damage == "truncate":
        file.write_text(text[:-5])
    elif damage == "edit":
        file.write_text(text.replace("0", "1", 1))
    elif damage == "delete":
        file.unlink()
    else:
        (folder / "numbers.txt").write_text("")
    manifest = json.loads((folder / "manifest.json").read_text())
    (problem,) = verify_payload(folder, manifest)
    assert "numbers." in problem
    pipeline["more"] = {**pipeline["double"], "factor": 5.0}
    with pytest.raises(ArtifactError, match=r"numbers\.(json|txt).*execute\.refresh=\[count\]"):
        execute(pipeline)
    assert execute(pipeline, refresh=("count",))["more"] == "ran"


def test_an_edit_that_hides_its_time_is_found_when_it_is_read(pipeline, execute, store):
    from effllm.pipelines.store import Store

    execute(pipeline)
    file = only(store, "count") / "numbers.json"
    before = file.stat()
    file.write_text(file.read_text().replace("0", "1", 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    pipeline["more"] = {**pipeline["double"], "factor": 5.0}
    with pytest.raises(ArtifactError, match="found"):
        execute(pipeline, store=Store(store.root))


def test_a_broken_manifest_is_named(pipeline, execute, store):
    execute(pipeline)
    (only(store, "collect") / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"collect/.*manifest\.json cannot be read"):
        execute(pipeline)


def test_outputs_that_cannot_be_written_are_named(pipeline, execute, store, tmp_path):
    from effllm.pipelines.store import Store

    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(
        ArtifactError, match=r"cannot write to .*choose a folder with paths\.outputs"
    ):
        execute(pipeline, store=Store(blocked / "outputs"))


def test_the_manifest_says_how_the_result_was_made(pipeline, execute, store):
    execute(pipeline)
    manifest = json.loads((only(store, "count") / "manifest.json").read_text())
    assert manifest["config"] == {"size": 3}
    assert manifest["metrics"] == {"size": 3}
    assert manifest["timing"]["peak_rss_bytes"] > 1e6
    assert manifest["code"]["fingerprint"] and manifest["env"]["packages"]["torch"]
    assert not any(str(store.root) in json.dumps(value) for value in manifest.values())
