"""Identity, reuse, resume, damage: the life of a result."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from effllm.modules.errors import (
    ArtifactError,
    ConfigError,
    EffLLMError,
    GraphError,
    NumericalError,
)
from effllm.pipelines.graph import build_graph
from effllm.pipelines.identity import canonical_json, fingerprint
from effllm.pipelines.store import verify_payload


def digests(pipeline, store):
    return {one.name: one.digest for one in build_graph(pipeline, store)}


def payload(store, instance):
    return store.manifest(instance.stage, instance.digest)["outputs"]


def only(store, stage):
    """The one published folder of a stage."""
    (folder,) = (store.artifacts / stage).iterdir()
    return folder


# Identity


def test_names_order_and_volatile_fields_do_not_enter_the_digest(pipeline, store):
    first = digests(pipeline, store)
    renamed = {
        "sum": {**pipeline["collect"], "inputs": {"numbers": ["three", "two"]}},
        "two": {**pipeline["double"], "inputs": {"numbers": "start"}},
        "three": {**pipeline["triple"], "inputs": {"numbers": "start"}},
        "start": {**pipeline["count"], "workers": 8},
    }
    second = digests(renamed, store)
    assert [second[n] for n in ("start", "two", "three", "sum")] == [
        first[n] for n in ("count", "double", "triple", "collect")
    ]


@pytest.mark.parametrize("change", [{"size": 4}, {"seed": 1}])
def test_every_other_field_changes_this_digest_and_those_behind_it(pipeline, store, change):
    first = digests(pipeline, store)
    pipeline["count"] |= change
    second = digests(pipeline, store)
    assert all(first[name] != second[name] for name in first)


def test_a_version_bump_changes_the_digest(pipeline, store, monkeypatch):
    first = digests(pipeline, store)
    import toy_stages

    monkeypatch.setattr(toy_stages.Scale, "VERSION", 2)
    second = digests(pipeline, store)
    assert first["count"] == second["count"] and first["double"] != second["double"]


def test_a_later_field_at_its_old_value_keeps_the_digest(pipeline, store, monkeypatch):
    import toy_stages

    first = digests(pipeline, store)["count"]
    monkeypatch.setattr(toy_stages.Count, "DIGEST_DEFAULTS", {"seed": 0})
    pipeline["count"]["seed"] = 0
    with_default = digests(pipeline, store)["count"]
    pipeline["count"]["seed"] = 1
    assert with_default == first != digests(pipeline, store)["count"]


def test_canonical_json_refuses_what_is_not_plain_data():
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    for bad in (float("nan"), object()):
        with pytest.raises((ValueError, TypeError)):
            canonical_json(bad)


def test_the_fingerprint_follows_imports_of_our_own_modules():
    one = fingerprint(["effllm.pipelines.stages.prune.Prune"])
    assert one == fingerprint(["effllm.pipelines.stages.prune.Prune"])
    assert one != fingerprint(["effllm.pipelines.stages.adjust.Adjust"])
    # Imports inside `run` count: the solver is imported there only.
    from effllm.pipelines.identity import _source

    assert "effllm.modules.sparsity.sequential" in _source("effllm.pipelines.stages.prune")[1]


# Graph


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"_target_": "toy_stages.Absent"}, ConfigError, "does not exist"),
        ({"_target_": "collections.OrderedDict"}, ConfigError, "is no stage"),
        ({"facter": 1}, ConfigError, "double: Scale has no field facter; its fields are factor"),
        ({"inputs": {"numbers": "nobody"}}, ConfigError, "no stage 'nobody'"),
        ({"inputs": {}}, ConfigError, r"needs inputs \['numbers'\], found \[\]"),
        ({"inputs": {"numbers": ["count"]}}, ConfigError, "expected one name"),
        ({"inputs": {"numbers": "collect"}}, GraphError, "cycle"),
    ],
)
def test_wrong_graphs_are_refused_by_name(pipeline, store, change, error, message):
    pipeline["double"] |= change
    with pytest.raises(error, match=message):
        build_graph(pipeline, store)


def test_all_wrong_stages_are_listed_at_once(pipeline, store):
    pipeline["double"]["facter"] = pipeline["triple"]["facter"] = 1
    with pytest.raises(ConfigError, match=r"double: .*; triple: "):
        build_graph(pipeline, store)


def test_missing_fields_and_wrong_kinds_are_refused(pipeline, store):
    del pipeline["double"]["factor"]
    with pytest.raises(ConfigError, match="no value for factor"):
        build_graph(pipeline, store)
    pipeline["double"]["factor"] = 1.0
    pipeline["after"] = {
        "_target_": "toy_stages.Scale",
        "factor": 1.0,
        "inputs": {"numbers": "collect"},
    }
    with pytest.raises(GraphError, match="expected a numbers, but collect makes a predictions"):
        build_graph(pipeline, store)


def scale(inputs):
    return {"_target_": "toy_stages.Scale", "factor": 2.0, "inputs": {"numbers": inputs}}


def test_scopes_look_inside_first_then_outside(store):
    graph = build_graph(
        {
            "count": {"_target_": "toy_stages.Count", "size": 1},
            "inner": {
                "count": {"_target_": "toy_stages.Count", "size": 2},
                "near": scale("count"),
            },
            "far": scale("inner.near"),
            "all": {"_target_": "toy_stages.Collect", "inputs": {"numbers": ["*near", "far"]}},
        },
        store,
    )
    assert {one.name: one.inputs["numbers"] for one in graph if one.inputs} == {
        "inner.near": ["inner.count"],
        "far": ["inner.near"],
        "all": ["inner.near", "far"],
    }


def test_null_takes_away_a_stage_or_an_input(pipeline, store):
    pipeline["triple"] = None
    pipeline["collect"]["inputs"] = {"numbers": ["double"], "other": None}
    assert [one.name for one in build_graph(pipeline, store)] == ["count", "double", "collect"]
    pipeline["collect"]["inputs"]["numbers"] = None
    with pytest.raises(ConfigError, match="collect.*needs inputs"):
        build_graph(pipeline, store)


def test_templates_are_repeated_for_each_subject(store):
    pipeline = {
        "one": {"_target_": "toy_stages.Count", "size": 1},
        "scope": {"one": {"_target_": "toy_stages.Count", "size": 2}},
        "measure": {"each": ["one", "scope.*"], "first": scale("subject"), "then": scale("first")},
        "user": scale("scope.one.then"),
    }
    assert {
        one.name: one.inputs["numbers"] for one in build_graph(pipeline, store) if one.inputs
    } == {
        "one.first": ["one"],
        "one.then": ["one.first"],
        "scope.one.first": ["scope.one"],
        "scope.one.then": ["scope.one.first"],
        "user": ["scope.one.then"],
    }
    pipeline["measure"]["each"] = ["absent*"]
    with pytest.raises(GraphError, match=r"measure\.inputs\.each: no stage matches 'absent\*'"):
        build_graph(pipeline, store)


# Reuse


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
    from effllm.pipelines.store import Store

    other = Store(tmp_path / "elsewhere")
    execute(pipeline)
    execute(pipeline, store=other)
    for one in build_graph(pipeline, store):
        assert payload(store, one) == payload(other, one)


def test_other_code_is_pointed_out(pipeline, execute, monkeypatch):
    execute(pipeline)
    monkeypatch.setattr("effllm.pipelines.graph.fingerprint", lambda targets: "changed")
    execute(pipeline)
    assert "made by other code" in execute.printed and "execute.refresh=[" in execute.printed


# Failure and resume


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
        "from effllm.pipelines.display import Display\n"
        "from effllm.pipelines.executor import Run\n"
        "from effllm.pipelines.planning import Options\n"
        "from effllm.pipelines.graph import build_graph\n"
        "from effllm.pipelines.store import Store\n"
        "from effllm.pipelines.tracking import NoLogger\n"
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
    monkeypatch.setattr("effllm.pipelines.graph.fingerprint", lambda targets: "changed")
    assert execute(pipeline) == {"long": "ran"}
    assert fault.with_name("fault.steps").read_text().split() == list("01201234")


def test_a_full_disk_is_named_and_loses_nothing(stepwise, execute, store):
    pipeline, fault = stepwise
    fault.write_text("disk 2")
    with pytest.raises(ArtifactError, match="No space left on device; free some space"):
        execute(pipeline)
    fault.unlink()
    assert execute(pipeline) == {"long": "resumed"}


def test_continue_runs_what_does_not_depend_on_the_failure(stepwise, pipeline, execute):
    broken, fault = stepwise
    fault.write_text("error 0")
    broken["behind"] = {**pipeline["double"], "inputs": {"numbers": "long"}}
    with pytest.raises(EffLLMError, match="1 stages failed: long"):
        execute({**broken, **pipeline}, on_error="continue")
    statuses = {name: one.status for name, one in execute.last.outcomes.items()}
    assert statuses == {"long": "failed", "behind": "skipped", **dict.fromkeys(pipeline, "ran")}
    recorded = json.loads((execute.last.folder / "run.json").read_text())["stages"]
    assert {name: one["status"] for name, one in recorded.items()} == statuses


def crash(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_crash_while_publishing_publishes_nothing(pipeline, execute, store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("effllm.pipelines.store.write_json", crash)  # before the manifest
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
    from effllm.pipelines.store import Store

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_move", crash)
        with pytest.raises(KeyboardInterrupt):
            execute(pipeline, until="count")
    assert not list(store.artifacts.glob("*/*/manifest.json"))
    assert execute(pipeline, until="count")["count"] == "hit"  # published, not computed again
    assert execute(pipeline)["collect"] == "ran"


def test_progress_from_other_inputs_is_not_used(stepwise, pipeline, execute, store, monkeypatch):
    """An input that was made again with other bytes invalidates what was begun with the old."""
    from effllm.pipelines import executor

    long, fault = stepwise
    fault.write_text("interrupt 3")
    with pytest.raises(KeyboardInterrupt):
        execute(long)
    fault.unlink()
    monkeypatch.setattr(executor, "_payload_digest", lambda inputs: "other")
    assert execute(long) == {"long": "ran"}


def test_twins_share_one_computation_and_are_refreshed_together(pipeline, execute):
    pipeline["twin"] = dict(pipeline["double"])
    pipeline["behind"] = {**pipeline["triple"], "inputs": {"numbers": "twin"}}
    first = execute(pipeline)
    assert sorted([first["double"], first["twin"]]) == ["hit", "ran"]
    again = execute(pipeline, refresh=("double",))
    assert sorted([again["double"], again["twin"]]) == ["hit", "ran"]
    assert again["behind"] == again["collect"] == "ran"


def test_two_equal_runs_share_one_computation(pipeline, execute, store):
    """The second waits for the lock of the first, then reuses."""
    (count,) = (one for one in build_graph(pipeline, store) if one.name == "count")
    with store.lock("count", count.digest):
        waiter = threading.Thread(target=execute, args=(pipeline,), kwargs={"until": "count"})
        waiter.start()
        deadline = time.monotonic() + 20
        while not getattr(execute, "last", None) and time.monotonic() < deadline:
            time.sleep(0.05)
            if waiter.is_alive() and not list((store.root / "locks").iterdir()):
                continue
            break
        # The holder publishes meanwhile, as the first of two runs would.
        work = store.work("count", count.digest)
        work.mkdir(parents=True)
        (work / "numbers.json").write_text("[1.0]")
        store.publish(
            work,
            {
                "stage": "count",
                "digest": count.digest,
                "instance": "count",
                "metrics": {},
                "code": {"fingerprint": count.code},
            },
        )
    waiter.join(timeout=30)
    assert not waiter.is_alive()
    assert execute.last.outcomes["count"].status == "hit"
    assert json.loads((only(store, "count") / "numbers.json").read_text()) == [1.0]


# Damage


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
