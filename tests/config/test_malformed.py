"""Configurations that do not fit: every field of every stage and object, wrong in every way.

The fields are those of the pipelines at smoke scale. A change is malformed whatever its class says:
another type, no number, nothing where a value must be, a negative count, a number beyond all size.
"""

import copy
import dataclasses
import math
from pathlib import Path

import pytest

from effllm.modules.errors import ConfigError, GraphError
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.commands.composing import CONF_DIR, compose, resolve
from effllm.pipelines.engine.building import one_a_line
from effllm.pipelines.engine.executor import build_stages
from effllm.pipelines.engine.graph import build_graph, check_fields
from effllm.pipelines.engine.store import Store
from effllm.pipelines.stage import Many

PAPERS = sorted(path.stem for path in (Path(CONF_DIR) / "paper").glob("*.yaml"))
MAY_BE_NULL = frozenset({"bits", "storage", "picture", "blocks"})  # though the papers give a value
MAY_BE_EMPTY = frozenset({"joiner"})


@pytest.fixture(scope="module")
def instances(tmp_path_factory):
    """One instance of every stage class that the papers use."""
    store = Store(tmp_path_factory.mktemp("outputs"))
    found = {}
    for paper in PAPERS:
        pipeline, _ = resolve(compose([f"paper={paper}", "scale=smoke"]))
        for instance in build_graph(pipeline, store):
            found.setdefault(instance.cls, instance)
    return list(found.values())


def leaves(config, path=(), owner=""):
    """(path, class around it, value) of all plain values of a configuration."""
    owner = config.get("_target_", owner)
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key), owner)
        elif not key.startswith("_"):
            yield (*path, key), owner, value


def wrong(key, value):
    """What a value of this type can never be, with the name of the fault."""
    yield "mapping", {"surprise": 1}
    if not isinstance(value, list):
        yield "list", [[]]
    if isinstance(value, bool):
        yield "type", "no"
    elif isinstance(value, int | float):
        yield from (("type", "many"), ("not a number", math.nan), ("no end", math.inf))
        yield "sign", -3
        if isinstance(value, int):
            yield "size", 10**30
    elif isinstance(value, str):
        yield "type", 5
        if key not in MAY_BE_EMPTY:
            yield "empty", ""
    elif isinstance(value, list):
        yield "type", 7
        yield "null inside", [None]
    if value is not None and key not in MAY_BE_NULL:
        yield "null", None


def malformed(instances):
    """(instance, changed path, fault, configuration) for every setting of every class, once."""
    seen = set()
    for instance in instances:
        for path, owner, value in leaves(instance.config):
            setting = (owner or instance.target, path[-1])
            if setting in seen:
                continue
            seen.add(setting)
            for fault, bad in wrong(path[-1], value):
                config = copy.deepcopy(instance.config)
                node = config
                for key in path[:-1]:
                    node = node[key]
                node[path[-1]] = bad
                yield instance, path, fault, config


def refusal(instance, config):
    """What is said about a configuration at plan, or else before the first stage."""
    changed = dataclasses.replace(instance, config=config)
    found = check_fields(changed, nested=changed.cls.SOURCES)
    if found:
        return one_a_line(found)
    try:
        build_stages([changed])
    except ConfigError as error:
        return str(error)
    return None


def test_every_malformed_setting_is_refused_before_any_work(instances):
    total, missed = 0, []
    for instance, path, fault, config in malformed(instances):
        total += 1
        said = refusal(instance, config)
        where = f"{instance.key}.{'.'.join(path)}"
        if said is None:
            missed.append((where, fault))
        else:  # a class that refuses its settings together is named itself
            assert instance.key in said and any(part in said for part in path[-2:]), (where, said)
    assert total > 900
    assert missed == []


def test_every_link_to_a_wrong_kind_is_refused(tmp_path):
    pipeline, _ = resolve(compose(["paper=sds", "scale=smoke"]))
    store = Store(tmp_path)
    graph = build_graph(pipeline, store)
    checked = set()
    for instance in graph:
        for slot, declared in instance.cls.INPUTS.items():
            kind = declared.kind if isinstance(declared, Many) else declared
            if (instance.cls, slot) in checked or kind is Artifact:
                continue
            checked.add((instance.cls, slot))
            other = next(one for one in graph if not issubclass(one.cls.OUTPUT, kind))
            changed = copy.deepcopy(pipeline)
            node = changed
            for scope in instance.name.split("."):
                if scope not in node:  # repeated from a template
                    break
                node = node[scope]
            else:
                wanted = [other.name] if isinstance(declared, Many) else other.name
                node["inputs"][slot] = wanted
                with pytest.raises(GraphError, match=f"{slot}.*expected a|cycle"):
                    build_graph(changed, store)
    assert len(checked) > 10
