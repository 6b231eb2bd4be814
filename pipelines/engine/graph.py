"""From configuration to an ordered list of stage instances with digests.

`pipeline` is a tree: a node with `_target_` is a stage instance, any other mapping a scope that
groups instances under a dotted name. An input names an instance; it is looked up in the scope of
the instance that uses it, then in the scopes around it; slots for many take patterns of full names
as well. A scope with `each` is a template: its
stages are repeated for every instance that a pattern of `each` matches, below that instance's
name, and know it as `subject`. Everything here is cheap: stage classes
are imported, nothing is built, torch is not needed.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from effllm.modules.errors import ConfigError, DataError, EffLLMError, GraphError
from effllm.pipelines.artifacts.kinds import kind_named
from effllm.pipelines.engine import building
from effllm.pipelines.engine.identity import fingerprint, recipe_digest, targets_of
from effllm.pipelines.engine.store import Store
from effllm.pipelines.stage import Many, Source, Stage

ARTIFACT_PREFIX = "artifact:"


@dataclass
class Instance:
    """One stage of a pipeline.

    Attributes:
        name: dotted name in the pipeline; a label that does not enter the digest.
        target: dotted path of the class.
        cls: the stage class.
        config: fields, nested objects as plain data; without `_target_` and `inputs`.
        inputs: slot -> instance names, or `artifact:<stage>/<digest>` references.
        digest: recipe digest.
        sources: field -> identity of an external source.
        code: fingerprint of the source files involved.
        packages: import roots outside of effllm that its nested objects may come from.
    """

    name: str
    target: str
    cls: type[Stage]
    config: dict[str, Any]
    inputs: dict[str, list[str]]
    digest: str = ""
    sources: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    code: str = ""
    packages: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Where its fields stand in the configuration."""
        return f"pipeline.{self.name}"

    @property
    def stage(self) -> str:
        """Name of the stage's folder in the store: the class name in snake case."""
        return stage_name(self.cls)

    @property
    def parents(self) -> list[str]:
        """All inputs, in slot order."""
        return [name for names in self.inputs.values() for name in names]


def stage_name(cls: type[Stage]) -> str:
    """`ImportModel` -> `import_model`."""
    letters = [f"_{c.lower()}" if c.isupper() else c for c in cls.__name__]
    return "".join(letters).lstrip("_")


def build_graph(
    pipeline: Mapping[str, Any],
    store: Store,
    packages: Iterable[str] = (),
    machine: Mapping[str, Any] | None = None,
) -> list[Instance]:
    """Instances in an order in which inputs come first, with digests.

    Args:
        pipeline: the resolved `pipeline` node of the configuration.
        store: where `artifact:` references are looked up.
        packages: import roots outside of effllm that classes may come from.
        machine: what measures times; enters the digests of stages whose result is a time.

    Raises:
        ConfigError: unknown classes and fields, missing values, and values that do not fit; all
            that were found, a line each.
        GraphError: unknown inputs, cycles, or kinds that do not fit.
    """
    raw = _expand(*_flatten(pipeline, ""))
    if not raw:
        raise GraphError("the pipeline has no stages; does the paper file list any?")
    problems: list[str] = []
    instances: dict[str, Instance] = {}
    for name, config in raw.items():
        try:
            instances[name] = _instance(name, config, list(raw), tuple(packages))
        except EffLLMError as error:
            problems.append(str(error))
        else:
            problems += check_fields(instances[name], nested=instances[name].cls.SOURCES)
    if problems:
        raise ConfigError(building.one_a_line(problems))
    ordered = _topological(instances)
    for cls in dict.fromkeys(instance.cls for instance in ordered):
        cls.check_together({one.name: one.config for one in ordered if one.cls is cls})
    for instance in ordered:
        _check_kinds(instance, instances, store)
        _identify(instance, instances, store, machine or {})
    return ordered


Nodes = dict[str, dict[str, Any]]


def _flatten(node: Mapping[str, Any], prefix: str) -> tuple[Nodes, Nodes]:
    """Stage nodes and templates by dotted name."""
    stages: Nodes = {}
    templates: Nodes = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        if value is None:  # null takes away what a recipe gave
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"pipeline.{name}: expected a stage or a scope, found {value!r}")
        if "_target_" in value:
            stages[name] = dict(value)
        elif "each" in value:
            templates[name] = dict(value)
        else:
            for found, more in zip((stages, templates), _flatten(value, f"{name}."), strict=True):
                found.update(more)
    return stages, templates


def _expand(stages: Nodes, templates: Nodes) -> Nodes:
    """All stage nodes, templates repeated for each of their subjects."""
    expanded = dict(stages)
    for name, template in templates.items():
        repeated, nested = _flatten({k: v for k, v in template.items() if k != "each"}, "")
        if nested:
            raise ConfigError(f"pipeline.{name}: a template cannot hold another template")
        for subject in _match(name, "each", template["each"], list(stages)):
            for key, config in repeated.items():
                inputs = {
                    slot: subject if wanted == "subject" else wanted
                    for slot, wanted in (config.get("inputs") or {}).items()
                }
                if f"{subject}.{key}" in expanded:
                    raise GraphError(f"pipeline.{name}: {subject}.{key} exists already")
                expanded[f"{subject}.{key}"] = {**config, "inputs": inputs}
    return expanded


def _instance(
    name: str, config: dict[str, Any], names: list[str], packages: tuple[str, ...]
) -> Instance:
    config = dict(config)
    target = config.pop("_target_")
    given = config.pop("inputs", None) or {}
    # null takes away what a recipe gave, where another stage took its place
    inputs = {slot: wanted for slot, wanted in given.items() if wanted is not None}
    cls = load_stage(target, f"pipeline.{name}", packages)
    if set(inputs) != set(cls.INPUTS):
        raise GraphError(
            f"{name}: {cls.__name__} needs inputs {sorted(cls.INPUTS)}, found {sorted(inputs)}"
        )
    links = {}
    for slot, wanted in inputs.items():
        many = isinstance(cls.INPUTS[slot], Many)
        if isinstance(wanted, list) != many:
            raise GraphError(f"{name}.inputs.{slot}: expected {'a list' if many else 'one name'}")
        if many:
            plain = [_scoped(name, str(one), names) or str(one) for one in wanted]
            links[slot] = _match(name, slot, plain, names)
        else:
            links[slot] = [_lookup(name, slot, str(wanted), names)]
    return Instance(name, target, cls, config, links, packages=packages)


def load_stage(target: str, where: str, packages: Iterable[str] = ()) -> type[Stage]:
    """The stage class behind a `_target_`.

    Raises:
        ConfigError: if it does not exist, is no stage, or lies outside the allowed packages.
    """
    cls = building.load_class(target, where, packages)
    if not issubclass(cls, Stage):
        raise ConfigError(f"{where}: _target_ {target} is no stage")
    return cls


def check_fields(instance: Instance, *, nested: Iterable[str] | None = None) -> list[str]:
    """What does not fit in the fields of an instance, a line each.

    Args:
        instance: the stage.
        nested: fields whose objects are looked into, all if None; that may import torch.
    """
    found = building.faults(
        instance.key, instance.cls, instance.config, packages=instance.packages, nested=nested
    )
    return list(found)


def _lookup(name: str, slot: str, wanted: str, names: list[str]) -> str:
    if wanted.startswith(ARTIFACT_PREFIX):
        return wanted
    found = _scoped(name, wanted, names)
    if found is None:
        raise GraphError(f"{name}.inputs.{slot}: no stage {wanted!r}; {suggest(wanted, names)}")
    return found


def _scoped(name: str, wanted: str, names: list[str]) -> str | None:
    """The stage of that name in the scope of `name`, or else in the scopes around it."""
    scope = name
    while scope:
        scope = scope.rpartition(".")[0]
        candidate = f"{scope}.{wanted}" if scope else wanted
        if candidate in names and candidate != name:
            return candidate
    return None


def suggest(wanted: str, names: Iterable[str]) -> str:
    """What somebody who typed `wanted` may have meant."""
    close = difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else "`effllm plan` lists them"


def _match(name: str, slot: str, patterns: list[str], names: list[str]) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        hits = [other for other in names if fnmatchcase(other, pattern) and other != name]
        if not hits:
            raise GraphError(f"{name}.inputs.{slot}: no stage matches {pattern!r}")
        found += [hit for hit in hits if hit not in found]
    return found


def _topological(instances: dict[str, Instance]) -> list[Instance]:
    ordered: dict[str, Instance] = {}
    visiting: list[str] = []

    def visit(name: str) -> None:
        if name in ordered or name.startswith(ARTIFACT_PREFIX):
            return
        if name in visiting:
            raise GraphError(f"cycle: {' -> '.join([*visiting[visiting.index(name) :], name])}")
        visiting.append(name)
        for parent in instances[name].parents:
            visit(parent)
        visiting.pop()
        ordered[name] = instances[name]

    for name in instances:
        visit(name)
    return list(ordered.values())


def _check_kinds(instance: Instance, instances: dict[str, Instance], store: Store) -> None:
    for slot, names in instance.inputs.items():
        declared = instance.cls.INPUTS[slot]
        kind = declared.kind if isinstance(declared, Many) else declared
        for name in names:
            if name.startswith(ARTIFACT_PREFIX):
                _, manifest = store.find(name.removeprefix(ARTIFACT_PREFIX))
                given = kind_named(manifest["kind"], name)
            else:
                given = instances[name].cls.OUTPUT
            if not issubclass(given, kind):
                raise GraphError(
                    f"{instance.name}.inputs.{slot}: expected a {kind.kind}, but {name} makes a "
                    f"{given.kind}"
                )


def _identify(
    instance: Instance, instances: dict[str, Instance], store: Store, machine: Mapping[str, Any]
) -> None:
    def digest_of(name: str) -> str:
        if name.startswith(ARTIFACT_PREFIX):
            return str(store.find(name.removeprefix(ARTIFACT_PREFIX))[1]["digest"])
        return instances[name].digest

    inputs: dict[str, Any] = {}
    for slot, names in instance.inputs.items():
        digests = [digest_of(name) for name in names]
        declared = instance.cls.INPUTS[slot]
        if not isinstance(declared, Many):
            inputs[slot] = digests[0]
        else:
            inputs[slot] = digests if declared.ordered else sorted(digests)
    try:
        instance.sources = {
            field: build_source(instance, field).identity() for field in instance.cls.SOURCES
        }
    except DataError as error:
        raise DataError(f"{instance.name}: {error}") from error
    instance.digest = recipe_digest(
        stage=instance.cls.__name__,
        version=instance.cls.VERSION,
        parts=instance.cls.PART_VERSIONS,
        config=instance.config,
        volatile=instance.cls.VOLATILE,
        defaults=instance.cls.DIGEST_DEFAULTS,
        inputs=inputs,
        sources=instance.sources,
        machine=machine if instance.cls.TIMED else {},
    )
    instance.code = fingerprint([instance.target, *targets_of(instance.config)])


def build_source(instance: Instance, field: str) -> Source:
    """The external source in a field of an instance.

    Raises:
        ConfigError: if its class refuses its settings.
    """
    source: Source = building.construct(
        f"{instance.key}.{field}", instance.config[field], instance.packages
    )
    return source
