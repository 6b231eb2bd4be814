"""What is computed, what is reused, and what an interruption leaves behind."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
from safetensors import SafetensorError
from toy_stages import build_graph, manifest_of

from effllm.modules.errors import (
    ArtifactError,
    ConfigError,
    EffLLMError,
    NumericalError,
)
from effllm.pipelines.engine.display import Display
from effllm.pipelines.engine.executor import Run


def payload(store, instance):
    return store.manifest(instance.stage, instance.digest)["outputs"]


def only(store, stage):
    """The one published folder of a stage."""
    (folder,) = (store.artifacts / stage).iterdir()
    return folder


def test_a_second_run_computes_nothing(pipeline, execute):
    assert set(execute(pipeline).values()) == {"ran"}
    second = execute(pipeline)
    assert second["collect"] == "hit" and "ran" not in second.values()


def test_only_what_is_needed_runs(pipeline, execute, store):
    execute(pipeline)
    shutil.rmtree(store.artifacts / "count")
    shutil.rmtree(store.artifacts / "collect")
    statuses = execute(pipeline)
    assert statuses == {"count": "not needed", "double": "hit", "triple": "hit", "collect": "ran"}


def test_until_and_refresh(pipeline, execute):
    assert execute(pipeline, until="double") == {
        "count": "ran",
        "double": "ran",
        "triple": "not needed",
        "collect": "not needed",
    }
    statuses = execute(pipeline, refresh=("double",))
    assert statuses == {"count": "hit", "double": "ran", "triple": "ran", "collect": "ran"}
    # Everything behind a refreshed stage runs again, though its result is there.
    statuses = execute(pipeline, refresh=("count",))
    assert set(statuses.values()) == {"ran"}
    with pytest.raises(ConfigError, match="no stage 'dubble'"):
        execute(pipeline, refresh=("dubble",))


def test_a_stored_result_can_be_an_input(pipeline, execute, store):
    execute(pipeline)
    folder = only(store, "count")
    statuses = execute(
        {
            "again": {
                "_target_": "toy_stages.Scale",
                "factor": 2.0,
                "inputs": {"numbers": f"artifact:count/{folder.name}"},
            }
        }
    )
    assert statuses == {"again": "hit"}  # the same recipe as `double`


def test_equal_runs_in_two_stores_have_equal_payloads(pipeline, execute, store, tmp_path):
    from effllm.pipelines.engine.store import Store

    other = Store(tmp_path / "elsewhere")
    execute(pipeline)
    execute(pipeline, store=other)
    for one in build_graph(pipeline, store):
        assert payload(store, one) == payload(other, one)


def test_other_code_is_pointed_out(pipeline, execute, monkeypatch):
    execute(pipeline)
    monkeypatch.setattr("effllm.pipelines.engine.graph.fingerprint", lambda targets: "changed")
    execute(pipeline)
    assert "made by other code" in execute.printed and "execute.refresh=[" in execute.printed


@pytest.fixture
def stepwise(tmp_path):
    """A stage that can be made to fail at a step; returns (pipeline, fault file)."""
    fault = tmp_path / "fault"
    return {"long": {"_target_": "toy_stages.Stepwise", "steps": 5, "fault": str(fault)}}, fault


def test_a_failed_stage_resumes_where_it_stopped(stepwise, execute, store):
    pipeline, fault = stepwise
    fault.write_text("error 3")
    with pytest.raises(NumericalError, match="long: step 3 is not finite"):
        execute(pipeline)
    (work,) = (store.root / "work").iterdir()
    assert json.loads((work / "error.json").read_text())["type"] == "NumericalError"
    assert not (store.artifacts / "stepwise").exists()
    fault.unlink()
    assert execute(pipeline) == {"long": "resumed"}
    steps = fault.with_name("fault.steps").read_text().split()
    assert steps == ["0", "1", "2", "3", "4"]  # nothing was computed twice
    assert sorted(path.name for path in only(store, "stepwise").iterdir()) == [
        "manifest.json",
        "numbers.json",
    ]
    assert not any((store.root / "work").iterdir())


def test_kill_at_every_step_gives_the_same_result(stepwise, store, execute, tmp_path):
    pipeline, fault = stepwise
    script = tmp_path / "main.py"
    script.write_text(
        "import sys, json\n"
        "from pathlib import Path\n"
        "from effllm.pipelines.engine.display import Display\n"
        "from effllm.pipelines.engine.executor import Run\n"
        "from effllm.pipelines.engine.planning import Options\n"
        "from toy_stages import build_graph\n"
        "from effllm.pipelines.engine.store import Store\n"
        "from effllm.pipelines.engine.tracking import NoLogger\n"
        "store = Store(Path(sys.argv[1]))\n"
        "graph = build_graph(json.loads(sys.argv[2]), store)\n"
        "Run(graph, store, store.root / 'run', {'paper': 'toy', 'scale': 'smoke'}, NoLogger(),\n"
        "    Display(), Options()).execute()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(store.root), json.dumps(pipeline)]
    for step in range(5):
        fault.write_text(f"kill {step}")
        done = subprocess.run(command, env=environment, capture_output=True)
        assert done.returncode == -9
    fault.unlink()
    assert execute(pipeline) == {"long": "resumed"}
    assert fault.with_name("fault.steps").read_text().split() == ["0", "1", "2", "3", "4"]
    assert json.loads((only(store, "stepwise") / "numbers.json").read_text()) == [0, 1, 2, 3, 4]


def test_progress_of_other_code_is_not_used(stepwise, execute, monkeypatch):
    pipeline, fault = stepwise
    fault.write_text("interrupt 3")
    with pytest.raises(KeyboardInterrupt):
        execute(pipeline)
    fault.unlink()
    monkeypatch.setattr("effllm.pipelines.engine.graph.fingerprint", lambda targets: "changed")
    assert execute(pipeline) == {"long": "ran"}
    assert fault.with_name("fault.steps").read_text().split() == list("01201234")


def test_a_full_disk_is_named_and_loses_nothing(stepwise, execute, store):
    pipeline, fault = stepwise
    fault.write_text("disk 2")
    with pytest.raises(ArtifactError, match="No space left on device; free some space"):
        execute(pipeline)
    fault.unlink()
    assert execute(pipeline) == {"long": "resumed"}


def test_a_disk_that_fills_up_under_tensors_is_named_too(stepwise, execute, monkeypatch):
    """Safetensors raises an error of its own, not Python's."""
    import safetensors.torch

    pipeline, _ = stepwise

    save = safetensors.torch.save_file

    def full(tensors, path):
        if "step-2" in str(path):
            text = "Error while serializing: I/O error: No space left on device (os error 28)"
            raise SafetensorError(text)
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(ArtifactError, match=r"/step-2\.partial: No space left on device;"):
            execute(pipeline)
    assert execute(pipeline) == {"long": "resumed"}


def test_an_error_is_not_hidden_by_a_run_file_that_cannot_be_written(
    stepwise, execute, monkeypatch
):
    pipeline, fault = stepwise
    fault.write_text("disk 0")

    def full(run):
        if any(one.status == "failed" for one in run.outcomes.values()):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "_write_run_file", full)
    with pytest.raises(ArtifactError, match="long: cannot write stepwise-"):
        execute(pipeline)


def test_continue_runs_what_does_not_depend_on_the_failure(stepwise, pipeline, execute):
    broken, fault = stepwise
    fault.write_text("error 0")
    broken["behind"] = {**pipeline["double"], "inputs": {"numbers": "long"}}
    with pytest.raises(EffLLMError, match="^long: step 0 is not finite$"):
        execute({**broken, **pipeline}, on_error="continue")
    statuses = {name: one.status for name, one in execute.last.outcomes.items()}
    assert statuses == {"long": "failed", "behind": "skipped", **dict.fromkeys(pipeline, "ran")}
    recorded = json.loads((execute.last.folder / "run.json").read_text())["stages"]
    assert {name: one["status"] for name, one in recorded.items()} == statuses


def crash(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_crash_while_publishing_publishes_nothing(pipeline, execute, store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("effllm.pipelines.engine.store.write_json", crash)  # before the manifest
        with pytest.raises(KeyboardInterrupt):
            execute(pipeline, until="count")
    assert not list(store.artifacts.glob("*/*/manifest.json"))
    assert execute(pipeline, until="count") == {
        "count": "ran",
        "double": "not needed",
        "triple": "not needed",
        "collect": "not needed",
    }


def test_a_crash_after_the_manifest_loses_nothing(pipeline, execute, store, monkeypatch):
    from effllm.pipelines.engine.store import Store

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_move", crash)
        with pytest.raises(KeyboardInterrupt):
            execute(pipeline, until="count")
    assert not list(store.artifacts.glob("*/*/manifest.json"))
    assert execute(pipeline, until="count")["count"] == "hit"  # published, not computed again
    assert execute(pipeline)["collect"] == "ran"


def test_progress_from_other_inputs_is_not_used(stepwise, pipeline, execute, store, monkeypatch):
    """An input that was made again with other bytes invalidates what was begun with the old."""
    from effllm.pipelines.engine import executor

    long, fault = stepwise
    fault.write_text("interrupt 3")
    with pytest.raises(KeyboardInterrupt):
        execute(long)
    fault.unlink()
    monkeypatch.setattr(executor, "payload_digest", lambda inputs: "other")
    assert execute(long) == {"long": "ran"}


def test_twins_share_one_computation_and_are_refreshed_together(pipeline, execute):
    pipeline["twin"] = dict(pipeline["double"])
    pipeline["behind"] = {**pipeline["triple"], "inputs": {"numbers": "twin"}}
    first = execute(pipeline)
    assert sorted([first["double"], first["twin"]]) == ["hit", "ran"]
    again = execute(pipeline, refresh=("double",))
    assert sorted([again["double"], again["twin"]]) == ["hit", "ran"]
    assert again["behind"] == again["collect"] == "ran"


def test_two_equal_runs_share_one_computation(pipeline, execute, store, monkeypatch):
    """The second waits for the lock of the first, then reuses."""
    waits, line = threading.Event(), Display.line

    def listen(display, text):
        line(display, text)
        if "another process is making this result" in text:
            waits.set()

    monkeypatch.setattr(Display, "line", listen)
    (count,) = (one for one in build_graph(pipeline, store) if one.name == "count")
    with store.lock("count", count.digest):
        waiter = threading.Thread(target=execute, args=(pipeline,), kwargs={"until": "count"})
        waiter.start()
        assert waits.wait(timeout=60)
        # The holder publishes meanwhile, as the first of two runs would.
        work = store.work("count", count.digest)
        work.mkdir(parents=True)
        (work / "numbers.json").write_text("[1.0]")
        store.publish(work, manifest_of(count))
    waiter.join(timeout=30)
    assert not waiter.is_alive()
    assert execute.last.outcomes["count"].status == "hit"
    assert json.loads((only(store, "count") / "numbers.json").read_text()) == [1.0]
