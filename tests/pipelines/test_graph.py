"""What a result is called, and how stages are joined: digests and graphs."""

import json
import sys
import types

import pytest
from toy_stages import build_graph

from effllm.modules.errors import (
    ArtifactError,
    ConfigError,
    GraphError,
)
from effllm.pipelines.engine.identity import canonical_json, fingerprint, recipe_digest
from effllm.pipelines.stage import Many


def digests(pipeline, store):
    return {one.name: one.digest for one in build_graph(pipeline, store)}


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


def test_the_order_of_inputs_told_apart_by_place_enters_the_digest(pipeline, store, monkeypatch):
    import toy_stages

    numbers = toy_stages.Collect.INPUTS["numbers"].kind
    monkeypatch.setattr(toy_stages.Collect, "INPUTS", {"numbers": Many(numbers, ordered=True)})
    first = digests(pipeline, store)["collect"]
    pipeline["collect"]["inputs"] = {
        "numbers": list(reversed(pipeline["collect"]["inputs"]["numbers"]))
    }
    assert digests(pipeline, store)["collect"] != first


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


def test_a_part_of_another_version_changes_digests_that_have_it_alone():
    def digest(part, parts):
        return recipe_digest(
            stage="t",
            version=1,
            parts=parts,
            config={"arms": [{"evict": {"_target_": f"effllm.modules.{part}"}}]},
            volatile=(),
            defaults={},
            inputs={},
            sources={},
            machine={},
        )

    assert digest("Tova", {"Expected": 2}) == digest("Tova", {})
    assert digest("Expected", {"Expected": 2}) != digest("Expected", {})
    assert digest("Expected", {"Expected": 2}) != digest("Expected", {"Expected": 3})


def test_a_class_that_moved_keeps_its_results(pipeline, store, monkeypatch):
    import toy_stages

    first = digests(pipeline, store)
    moved = types.ModuleType("toy_stages.elsewhere")
    moved.Count = toy_stages.Count
    monkeypatch.setitem(sys.modules, "toy_stages.elsewhere", moved)
    pipeline["count"]["_target_"] = "toy_stages.elsewhere.Count"
    assert digests(pipeline, store) == first


def test_only_times_know_their_machine(pipeline, store, monkeypatch):
    import toy_stages

    monkeypatch.setattr(toy_stages.Scale, "TIMED", True)

    def on(**machine):
        return {one.name: one.digest for one in build_graph(pipeline, store, machine=machine)}

    one, other = on(device="A", threads=2), on(device="A", threads=4)
    assert one["count"] == other["count"] and one["double"] != other["double"]
    assert (
        on(device="B", threads=2)["double"] != one["double"] == on(device="A", threads=2)["double"]
    )


def test_a_stored_result_is_opened_by_its_kind_alone(pipeline, store, execute):
    execute({"count": pipeline["count"]})
    (file,) = store.artifacts.glob("count/*/manifest.json")
    manifest = json.loads(file.read_text())
    assert manifest["kind"] == "numbers"
    manifest["target"] = "module_that_was_moved_away.Count"
    file.write_text(json.dumps(manifest))
    pipeline["double"]["inputs"]["numbers"] = f"artifact:count/{file.parent.name}"
    assert execute({"double": pipeline["double"]}) == {"double": "ran"}
    manifest["kind"] = "letters"
    file.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="cannot read 'letters'"):
        build_graph({"double": pipeline["double"]}, store)


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
    one = fingerprint(["effllm.pipelines.stages.sparsity.prune.Prune"])
    assert one == fingerprint(["effllm.pipelines.stages.sparsity.prune.Prune"])
    assert one != fingerprint(["effllm.pipelines.stages.sds.adjust.Adjust"])
    # Imports inside `run` count: the solver is imported there only.
    from effllm.pipelines.engine.identity import _source

    assert (
        "effllm.modules.sparsity.sequential" in _source("effllm.pipelines.stages.sparsity.prune")[1]
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"_target_": "toy_stages.Absent"}, ConfigError, "does not exist"),
        ({"_target_": "toy_stages.Numbers"}, ConfigError, "is no stage"),
        ({"_target_": "collections.OrderedDict"}, ConfigError, "outside of effllm"),
        (
            {"facter": 1},
            ConfigError,
            "pipeline.double.facter: Scale has no setting facter; did you mean factor",
        ),
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
    with pytest.raises(ConfigError, match=r"pipeline.double.facter and 1 other: "):
        build_graph(pipeline, store)


def test_missing_fields_and_wrong_kinds_are_refused(pipeline, store):
    del pipeline["double"]["factor"]
    with pytest.raises(ConfigError, match="pipeline.double.factor: no value; expected float"):
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


def test_slots_for_many_take_names_of_their_scope_and_patterns_of_whole_names(store):
    count = {"_target_": "toy_stages.Count", "size": 1}
    collect = {"_target_": "toy_stages.Collect", "inputs": {"numbers": ["one", "b.*"]}}
    graph = build_graph(
        {"one": count, "a": {"one": count, "all": collect}, "b": {"x": count}}, store
    )
    assert next(one for one in graph if one.name == "a.all").inputs["numbers"] == ["a.one", "b.x"]


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


def test_an_edited_verifier_leaves_a_search_and_a_text_whole(monkeypatch):
    from effllm.pipelines.engine import identity

    stages = "effllm.pipelines.stages"
    others = (
        f"{stages}.structural.search_allocation.SearchAllocation",
        f"{stages}.data.import_text.ImportText",
    )
    verifier = "effllm.modules.decoding.verifiers.fly"
    before = [fingerprint([target]) for target in (*others, f"{verifier}.Fly")]
    source = identity._source
    monkeypatch.setattr(
        identity, "_source", lambda m: ("edited", ()) if m == verifier else source(m)
    )
    after = [fingerprint([target]) for target in (*others, f"{verifier}.Fly")]
    assert before[:2] == after[:2] and before[2] != after[2]
