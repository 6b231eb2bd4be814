"""Stored results that were damaged, cannot be written, or are asked where they come from."""

import json
import os

import pytest
from toy_stages import build_graph, manifest_of

from effllm.modules.errors import ArtifactError
from effllm.pipelines.cli import main
from effllm.pipelines.engine.store import verify_payload
from effllm.pipelines.stage import StageContext


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
    from effllm.pipelines.engine.store import Store

    execute(pipeline)
    file = only(store, "count") / "numbers.json"
    before = file.stat()
    file.write_text(file.read_text().replace("0", "1", 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    pipeline["more"] = {**pipeline["double"], "factor": 5.0}
    with pytest.raises(ArtifactError, match="found"):
        execute(pipeline, store=Store(store.root))


def edited(change):
    """Damage to a manifest that stays JSON."""

    def damage(file):
        manifest = json.loads(file.read_text())
        change(manifest)
        file.write_text(json.dumps(manifest))

    return damage


UNUSABLE = {
    "emptied": lambda file: file.write_text(""),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "truncated": lambda file: file.write_text(file.read_text()[:-9]),
    "not text": lambda file: file.write_bytes(b"\xff\xfe"),
    "another kind of JSON": lambda file: file.write_text("[]"),
    "nested too deeply": lambda file: file.write_text("[" * 100_000),
    "deleted": lambda file: file.unlink(),
    "a part missing": edited(lambda manifest: manifest.pop("timing")),
    "a part of another type": edited(lambda manifest: manifest.update(outputs=[])),
    "no checksum": edited(lambda manifest: manifest["outputs"]["predictions.jsonl"].clear()),
    "a number as checksum": edited(
        lambda manifest: manifest["outputs"]["predictions.jsonl"].update(sha256=1)
    ),
    "of another digest": edited(lambda manifest: manifest.update(digest="0" * 64)),
    "of another stage": edited(lambda manifest: manifest.update(stage="../../home")),
    "a file outside": edited(
        lambda manifest: manifest["outputs"].update(
            {"../x": manifest["outputs"]["predictions.jsonl"]}
        )
    ),
    "an absolute file": edited(
        lambda manifest: manifest["outputs"].update(
            {"/x": manifest["outputs"]["predictions.jsonl"]}
        )
    ),
}


@pytest.mark.parametrize("damage", UNUSABLE)
def test_a_manifest_that_cannot_be_used_is_none(pipeline, execute, store, damage, capsys):
    """`verify` names it, other verbs leave it out, a run moves it away and makes it again."""
    execute(pipeline)
    folder = only(store, "collect")
    whole = payload_files(folder)
    UNUSABLE[damage](folder / "manifest.json")

    assert main(["verify", "--outputs", str(store.root)]) == 1
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2 and told[0].startswith(f"collect/{folder.name}: has ")
    assert told[1] == "4 results checked, 1 damaged"
    assert main(["ls", "--outputs", str(store.root)]) == 0
    assert "3 results" in (told := capsys.readouterr().out) and "1 folder without a result" in told
    assert main(["show", "--outputs", str(store.root), "collect/"]) == 1
    assert "no results match" in capsys.readouterr().err

    statuses = execute(pipeline)
    assert statuses == {"count": "not needed", "double": "hit", "triple": "hit", "collect": "ran"}
    (line,) = (line for line in execute.printed.splitlines() if line.startswith("note: collect: "))
    assert line.endswith("made again") and "moved to" in line
    assert payload_files(only(store, "collect")) == whole
    (trash,) = (store.root / "trash").iterdir()  # nothing is thrown away without being asked
    assert (trash / "predictions.jsonl").is_file()
    assert main(["verify", "--outputs", str(store.root)]) == 0


def payload_files(folder):
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"
    }


def test_a_manifest_in_a_work_folder_says_nothing_of_the_place(pipeline, execute, store, tmp_path):
    """What `publish` replaces is where the asked result belongs, not where a file says."""
    (count,) = build_graph({"count": pipeline["count"]}, store)
    precious = tmp_path / "precious" / count.digest[:12]
    precious.mkdir(parents=True)
    (precious / "thesis.txt").write_text("years of work")
    work = store.work(count.stage, count.digest)
    work.mkdir(parents=True)
    manifest = manifest_of(count) | {"stage": "../../precious", "outputs": {}}
    (work / "manifest.json").write_text(json.dumps(manifest))
    assert execute({"count": pipeline["count"]}) == {"count": "ran"}
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert only(store, "count").name == count.digest[:12]


def test_a_file_at_the_place_of_a_result_is_moved_away(pipeline, execute, store):
    (count,) = build_graph({"count": pipeline["count"]}, store)
    place = store.folder(count.stage, count.digest)
    place.parent.mkdir(parents=True)
    place.write_text("")
    assert execute({"count": pipeline["count"]}) == {"count": "ran"}
    place.rename(place.with_name("elsewhere"))
    place.symlink_to("elsewhere")  # somebody's other disk
    assert execute({"count": pipeline["count"]}) == {"count": "hit"}
    assert execute({"count": pipeline["count"]}, refresh=("count",)) == {"count": "ran"}
    assert not place.is_symlink() and (place.with_name("elsewhere") / "numbers.json").is_file()


def test_a_link_is_refused_as_part_of_a_result(store, pipeline, tmp_path):
    """What it names may go away, and its checksum would say nothing of it."""
    (count,) = build_graph({"count": pipeline["count"]}, store)
    work = store.work(count.stage, count.digest)
    work.mkdir(parents=True)
    (tmp_path / "numbers.json").write_text("[]")
    (work / "numbers.json").symlink_to(tmp_path / "numbers.json")
    with pytest.raises(ArtifactError, match=r"/numbers\.json is a link"):
        store.publish(work, manifest_of(count))


def test_progress_with_any_text_is_read_as_it_was_written(tmp_path):
    context = StageContext(
        instance="a", inputs={}, workdir=tmp_path, device="cpu", seed=0, log=print, progress=print
    )
    rows = [{"text": "one\u2028line\x85still\nnext"}, {"text": "two"}]
    context.save_rows(rows)
    assert context.load_rows() == rows
    (tmp_path / "progress" / "rows.jsonl").write_bytes(bytes(40))
    with pytest.raises(ArtifactError, match="progress file rows.jsonl is damaged; delete"):
        context.load_rows()


def test_a_manifest_from_the_future_does_not_hide_an_edit(pipeline, execute, store):
    """A clock that was ahead when the result was made says nothing of what was changed since."""
    execute(pipeline)
    folder = only(store, "collect")
    os.utime(folder / "manifest.json", (2**32, 2**32))
    file = folder / "predictions.jsonl"
    file.write_text(file.read_text().replace("1", "2", 1))
    with pytest.raises(ArtifactError, match=r"predictions\.jsonl: expected sha256"):
        execute(pipeline)


def test_results_on_another_file_system_are_refused_before_the_work(
    pipeline, execute, store, tmp_path
):
    (store.root / "artifacts").mkdir(parents=True)
    (store.root / "artifacts" / "count").symlink_to("/proc")
    with pytest.raises(ArtifactError, match="artifacts/count is on another file system"):
        execute(pipeline)


def test_outputs_that_cannot_be_written_are_named(pipeline, execute, store, tmp_path):
    from effllm.pipelines.engine.store import Store

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
