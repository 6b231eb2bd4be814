"""What a command leaves with its tracker: one record, and one for each stage that logs."""

import csv
import json
import struct
import time

import pytest

from effllm.modules.errors import ConfigError, NumericalError
from effllm.pipelines.engine.tracking import CsvLogger, TensorBoardLogger, WandbLogger


@pytest.fixture
def learning(pipeline):
    """The toy pipeline with a stage that logs and a report."""
    numbers = {"numbers": ["double", "learn"]}
    return {
        **pipeline,
        "learn": {"_target_": "toy_stages.Learn"},
        "report": {"_target_": "toy_stages.ReportToys", "inputs": numbers},
    }


@pytest.fixture
def wandb_logger(monkeypatch):
    """Below the outputs alone: the home may be one that cannot be written to."""
    monkeypatch.setenv("HOME", "/proc/nothing")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # given back after the test
        monkeypatch.delenv(name)
    return WandbLogger(project="effllm-test", entity=None, mode="offline")


def records(folder):
    """The records of an offline run: LevelDB's log format, a protocol buffer each."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    content, at, parts, found = file.read_bytes(), 7, b"", []  # after the header
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:  # blocks have no header at their end
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(parts))
            parts = b""
    return found


def finished_records(folder):
    """Wandb writes a run's end after `finish` has returned."""
    until = time.monotonic() + 30
    while not any(one.HasField("exit") for one in records(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    return records(folder)


def offline_runs(store):
    """Job type -> its name, configuration, history, summary, artifacts and exit codes."""
    runs = {}
    for folder in (store.root / "wandb").glob("offline-run-*"):
        run = {"folder": folder, "config": {}, "history": [], "summary": {}, "artifacts": []}
        for one in finished_records(folder):
            if one.HasField("run"):
                run |= {"name": one.run.display_name, "group": one.run.run_group,
                        "id": one.run.run_id, "type": one.run.job_type}  # fmt: skip
                run["config"] |= {i.key: json.loads(i.value_json) for i in one.run.config.update}
            elif one.HasField("history"):
                items = {".".join(i.nested_key) or i.key: i.value_json for i in one.history.item}
                run["history"].append({key: json.loads(value) for key, value in items.items()})
            elif one.HasField("summary"):
                items = {".".join(i.nested_key) or i.key: i.value_json for i in one.summary.update}
                run["summary"] |= {key: json.loads(value) for key, value in items.items()}
            elif one.HasField("request") and one.request.HasField("log_artifact"):
                run["artifacts"].append(one.request.log_artifact.artifact)
            elif one.HasField("artifact"):
                run["artifacts"].append(one.artifact)
            elif one.HasField("exit"):
                run["exit"] = one.exit.exit_code
        runs[run["type"]] = run
    return runs


def test_wandb_has_a_run_for_the_command_and_one_for_what_logs(
    learning, execute, store, wandb_logger
):
    execute(learning, logger=wandb_logger)
    runs = offline_runs(store)
    assert set(runs) == {"command", "learn"}
    command, learn = runs["command"], runs["learn"]
    assert command["group"] == learn["group"] and learn["name"] == "learn"
    manifests = {manifest["instance"]: manifest for _, manifest in store.manifests()}
    assert {one["tracking"]["run_id"] for one in manifests.values()} == {command["id"]}
    curves = [(row["step"], name, row[name]) for row in learn["history"] for name in row
              if name.startswith("seed-")]  # fmt: skip
    assert curves == [(step, f"seed-{seed}/loss", 1 / step + seed)
                      for seed in range(2) for step in range(1, 4)]  # fmt: skip
    expected = manifests["double"]["metrics"]["sum"]
    assert command["summary"]["toy 0/2:4/sum"] == pytest.approx(expected)
    media = [file.name for file in (command["folder"] / "files/media").rglob("*") if file.is_file()]
    for start, end in (
        ("results", ".table.json"), ("page", ".html"), ("sums", ".png"), ("metrics", ".table.json")
    ):  # fmt: skip
        assert any(name.startswith(start) and name.endswith(end) for name in media), media
    manifested = [one for run in (command, learn) for one in run["artifacts"] if one.metadata]
    names = {one.name: json.loads(one.metadata) for one in manifested}  # tables have none
    assert len(names) == len(learning)
    double = names[f"scale-{manifests['double']['digest'][:12]}"]
    assert double["inputs"] == manifests["double"]["inputs"]
    assert command["exit"] == 0


def test_wandb_hears_how_a_command_ended_and_nothing_of_one_with_nothing_to_do(
    learning, execute, store, wandb_logger, tmp_path
):
    (tmp_path / "fault").write_text("error 1")
    fault = str(tmp_path / "fault")
    learning["steps"] = {"_target_": "toy_stages.Stepwise", "steps": 3, "fault": fault}
    with pytest.raises(NumericalError):
        execute(learning, until="steps", logger=wandb_logger)
    assert offline_runs(store)["command"]["exit"] == 1
    execute(learning, until="learn")
    count = len(list((store.root / "wandb").glob("offline-run-*")))
    execute(learning, until="learn", logger=wandb_logger)
    assert len(list((store.root / "wandb").glob("offline-run-*"))) == count


def test_csv_has_a_file_of_results_and_one_for_each_stage_that_logs(learning, execute, store):
    execute(learning, logger=CsvLogger())
    folder = store.root / "runs" / "toy"
    with (folder / "results.csv").open(newline="") as file:
        results = list(csv.reader(file))
    assert results[0] == ["stage", "metric", "value"]
    assert ["count", "size", "3"] in results
    assert [row[:2] for row in results[-2:]] == [["report", f"toy {one}/2:4/sum"]
                                                 for one in range(2)]  # fmt: skip
    (curve,) = (folder / "curves").iterdir()
    lines = curve.read_text().splitlines()
    assert curve.name == "learn.csv" and lines[0] == "step,metric,value" and len(lines) == 7
    assert lines[4] == "1,seed-1/loss,2.0"


def test_tensorboard_has_the_curves_or_says_how_to_get_it(learning, execute, store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("effllm.pipelines.engine.tracking.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="logger=tensorboard: not installed; pip install"):
            execute(learning, logger=TensorBoardLogger())
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    execute(learning, logger=TensorBoardLogger())
    events = EventAccumulator(str(store.root / "runs" / "toy" / "tensorboard" / "learn"))
    events.Reload()
    points = [(one.step, one.value) for one in events.Scalars("seed-1/loss")]
    assert points == [(step, pytest.approx(1 / step + 1)) for step in range(1, 4)]
