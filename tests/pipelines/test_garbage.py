"""What `effllm gc` may take away, and what it must not."""

import json

import pytest
import toy_stages
from toy_stages import build_graph

from effllm.pipelines.cli import main
from effllm.pipelines.engine.store import live_run


@pytest.fixture
def collect(store, capsys):
    """Collect garbage; what was or would be removed, relative to the outputs."""

    def run(*options):
        assert main(["gc", "--json", *options, "--outputs", str(store.root)]) == 0
        return sorted(json.loads(capsys.readouterr().out)["bytes"])

    return run


def test_a_running_pipeline_keeps_its_inputs_and_its_progress(
    pipeline, execute, store, collect, monkeypatch
):
    """Also results of other runs that it only reuses, and work that it has not come to yet."""
    execute(pipeline, until="count")
    for path in (store.root / "runs" / "toy").glob("run.json"):
        path.unlink()  # the run that made `count` is forgotten
    last = next(one for one in build_graph(pipeline, store) if one.name == "collect")
    later = store.work(last.stage, last.digest) / "progress" / "rows.jsonl"
    later.parent.mkdir(parents=True)
    later.write_text("{}\n")
    (store.root / "work" / "scale-000000000000").mkdir()
    (store.artifacts / "scale" / "000000000000").mkdir(parents=True)
    removed, whole = [], toy_stages.Scale.run

    def scale(stage, ctx):
        removed.extend(collect("--yes"))
        assert later.is_file()
        return whole(stage, ctx)

    monkeypatch.setattr(toy_stages.Scale, "run", scale)
    assert execute(pipeline)["collect"] == "ran"
    assert removed == ["artifacts/scale/000000000000", "work/scale-000000000000"]
    assert collect() == []


def test_work_of_a_run_that_is_dead_is_garbage(tmp_path, execute, store, collect):
    fault = tmp_path / "fault"
    fault.write_text("interrupt 1")
    with pytest.raises(KeyboardInterrupt):
        execute({"long": {"_target_": "toy_stages.Stepwise", "steps": 2, "fault": str(fault)}})
    (work,) = (store.root / "work").iterdir()
    with live_run(store.root / "runs" / "toy"):
        assert collect() == []
    with store.lock(*work.name.split("-")):  # by a run whose folder is somewhere else
        assert collect() == []
    assert collect() == collect("--yes") == [f"work/{work.name}"]
    assert collect() == [] and not work.exists()


def test_a_record_that_cannot_be_read_stops_the_collection(pipeline, execute, store, capsys):
    execute(pipeline)
    (store.root / "runs" / "toy" / "run.json").write_text("")
    assert main(["gc", "--yes", "--outputs", str(store.root)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs/toy/run.json cannot be read" in line and "delete that folder" in line
    assert len(list(store.manifests())) == 4


def test_two_runs_that_begin_in_the_same_microsecond_have_a_folder_each(tmp_path):
    with live_run(tmp_path / "run") as first, live_run(tmp_path / "run") as second:
        assert first == tmp_path / "run" and second != first
        assert second.name.startswith("run-") and second.is_dir()
    with live_run(tmp_path / "run") as again:
        assert again == first


def test_links_and_files_are_garbage_too_and_what_links_name_is_kept(store, collect, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("")
    place = store.artifacts / "count"
    place.mkdir(parents=True)
    (place / "0123").symlink_to(tmp_path / "elsewhere")
    (place / "4567").write_text("")
    assert collect("--yes") == ["artifacts/count/0123", "artifacts/count/4567"]
    assert collect() == [] and (tmp_path / "elsewhere" / "file").is_file()


def test_a_store_that_cannot_be_written_to_can_be_looked_at(
    pipeline, execute, store, capsys, monkeypatch
):
    execute(pipeline)

    def refused(*arguments, **options):
        raise OSError(30, "Read-only file system", "somewhere")

    for name in ("os.mkdir", "os.rename", "os.replace", "effllm.pipelines.engine.store.FileLock"):
        monkeypatch.setattr(name, refused)
    for arguments in (["ls"], ["show", "collect/"], ["verify"], ["gc"]):
        assert main([*arguments, "--outputs", str(store.root)]) == 0, capsys.readouterr().err
    assert main(["gc", "--yes", "--outputs", str(store.root)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
