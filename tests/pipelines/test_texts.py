"""Texts as stages: read before any other work, never test text and calibration text at once."""

import json
import shutil

import pytest
from toy_stages import build_graph

from effllm.modules.errors import ConfigError, DataError
from effllm.pipelines.artifacts.data import Corpus
from effllm.pipelines.commands.composing import compose, resolve

LINE = "A line of text that is long enough to be told from others, which is number {}, and ends.\n"


def file_of(path, numbers, line=LINE):
    path.write_text("".join(line.format(number) for number in numbers))
    return str(path)


def texts(test, other, split="calibration", **settings):
    def one(path, splits):
        source = {"_target_": "effllm.modules.data.texts.FileText", "path": path, **settings}
        target = "effllm.pipelines.stages.data.import_text.ImportText"
        return {"_target_": target, "source": source, "splits": splits}

    count = {"_target_": "toy_stages.Count", "size": 3}
    double = {"_target_": "toy_stages.Scale", "factor": 2.0, "inputs": {"numbers": "count"}}
    return {
        "count": count,
        "double": double,
        "test_text": one(test, ["test"]),
        "other_text": one(other, [split]),
    }


@pytest.mark.parametrize("split", ["train", "calibration", "heldout"])
def test_text_of_two_splits_with_much_in_common_is_refused_before_work(execute, tmp_path, split):
    test = file_of(tmp_path / "a.txt", range(100))
    rows = [{"text": (tmp_path / "a.txt").read_text()}]  # another format, another way to cut
    other = tmp_path / "b.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in [{"text": "Mine."}, *rows]))
    with pytest.raises(DataError, match=rf"100\.00% of the test text of test_text .*{split} text"):
        execute(texts(test, str(other), split))
    done = {name: outcome.status for name, outcome in execute.last.outcomes.items()}
    assert done["test_text"] == done["other_text"] == "ran" and done["double"] == "run"
    with pytest.raises(DataError, match="stand word for word"):  # also where both are there already
        execute(texts(test, str(other), split))


def test_text_with_little_in_common_is_used_with_a_warning(execute, tmp_path):
    test = file_of(tmp_path / "a.txt", range(100))
    few = file_of(tmp_path / "b.txt", range(98, 200))
    assert execute(texts(test, few))["double"] == "ran"
    assert "warning: 2.00% of the test text of test_text stand word for word" in execute.printed
    none = file_of(tmp_path / "c.txt", range(100, 200))
    execute(texts(test, none))
    assert "warning" not in execute.printed


def test_short_lines_that_everybody_writes_are_no_common_text(execute, tmp_path):
    said = "".join(["Yes.\n", "= References =\n"] * 50)
    for name, numbers in (("a.txt", range(9)), ("b.txt", range(9, 20))):
        file_of(tmp_path / name, numbers)
        with (tmp_path / name).open("a") as lines:
            lines.write(said)
    execute(texts(str(tmp_path / "a.txt"), str(tmp_path / "b.txt")))
    assert "warning" not in execute.printed


def test_a_copy_of_a_file_is_the_same_file(store, tmp_path):
    test = file_of(tmp_path / "a.txt", range(9))
    copy = shutil.copy(test, tmp_path / "b.txt")
    with pytest.raises(ConfigError, match="test_text .*other_text .*same file"):
        build_graph(texts(test, str(copy)), store)


def test_a_broken_file_stops_a_run_before_all_work(execute, tmp_path):
    """At plan if an early row is odd, else when a run begins."""
    good, late = file_of(tmp_path / "a.txt", range(9)), tmp_path / "late.txt"
    late.write_bytes(b"a line\n" * 2000 + b"\xff\n")
    with pytest.raises(DataError, match=r"other_text: late\.txt, line 2001: .*not utf-8"):
        execute(texts(good, str(late)))
    assert not list(execute.last.store.artifacts.glob("*/*"))
    late.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"other_text: late\.txt, line 1: .*not utf-8"):
        build_graph(texts(good, str(late)), execute.last.store)


def test_the_name_of_a_text_is_its_own(execute, store, tmp_path):
    file_of(tmp_path / "mine.txt", range(99))
    for overrides, name in (
        (["data=wikitext2"], "mine.txt"),
        (["data=file"], "mine.txt"),
        (["data=file", "data.name=my/own"], "my/own"),
    ):
        overrides = ["paper=sds", "scale=smoke", *overrides, f"data.path={tmp_path}/mine.txt"]
        pipeline, _ = resolve(compose(overrides))
        execute({"test_text": pipeline["test_text"]})
        (one,) = build_graph({"test_text": pipeline["test_text"]}, store)
        assert store.open(one.stage, one.digest, Corpus).info["name"] == name
        assert one.sources["source"]["name"] == name


def test_tasks_of_a_text_with_a_free_name_are_files(execute, store, tmp_path):
    path = file_of(tmp_path / "mine.txt", range(99))
    overrides = ["task_data.path=" + path, "task_data.name=../my/own", "data@task_data=file"]
    pipeline, _ = resolve(compose(["paper=fly_accuracy", "scale=smoke", *overrides]))
    chosen = {name: pipeline[name] for name in ("task_text", "tasks")}
    execute(chosen)
    tasks = build_graph(chosen, store)[-1]
    folder = store.folder(tasks.stage, tasks.digest)
    assert (folder / "my-own_recall.jsonl").is_file()


@pytest.mark.parametrize("splits", [[], ["tset"], ["test", "test"]])
def test_splits_that_nobody_knows_are_refused(execute, tmp_path, splits):
    pipeline = texts(file_of(tmp_path / "a.txt", range(9)), file_of(tmp_path / "b.txt", [99]))
    pipeline["other_text"]["splits"] = splits
    with pytest.raises(ConfigError, match="splits: .*(expected some of train|at least 1 item)"):
        execute(pipeline)
