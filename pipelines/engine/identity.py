"""Identity of a result: a digest of its recipe.

Two stages with the same class, version, hyper-parameters, inputs and sources have the same digest
and share one result, whatever they are called and wherever they run. Classes are known by name,
not by place: a file may move without losing its results. Code is not part of the
digest; a fingerprint of the source files behind every `_target_` is stored beside the result, so
that a reuse across a code change can be pointed out.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

SCHEMA = 2  # 2: classes by name
DIGEST_LENGTH = 12

_ROOT = Path(__file__).parents[2]  # the folder of the import root `effllm`
_IMPORT = re.compile(
    r"^\s*(?:from|import) (effllm[\w.]*)(?: import ([\w, ]+|\([^)]*\)))?", re.MULTILINE
)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; refuses NaN and objects that are not plain data."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def recipe_digest(
    *,
    stage: str,
    version: int,
    parts: Mapping[str, int],
    config: Mapping[str, Any],
    volatile: Iterable[str],
    defaults: Mapping[str, Any],
    inputs: Mapping[str, Any],
    sources: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> str:
    """Digest of what determines a result.

    Args:
        stage: name of the stage class.
        version: the class's VERSION.
        parts: the class's PART_VERSIONS; those of classes that `config` names enter.
        config: all fields of the stage, nested objects as plain dictionaries.
        volatile: dotted fields that do not change the result; left out.
        defaults: fields added later, left out while they equal the value that keeps old results;
            of a mapping each key by itself.
        inputs: slot -> digest, or sorted list of digests.
        sources: identities of external models and data.
        machine: what measured a time; empty for other results.

    Returns:
        64 hexadecimal digits.
    """
    kept = _changed(_without(config, set(volatile)), defaults)
    recipe = {
        "schema": SCHEMA,
        "stage": stage,
        "version": version,
        "config": _by_name(kept),
        "inputs": inputs,
        "sources": sources,
    }
    named = {target.rpartition(".")[2] for target in targets_of(kept)}
    if used := {name: number for name, number in parts.items() if name in named}:
        recipe["parts"] = used
    if machine:
        recipe["machine"] = machine
    return hashlib.sha256(canonical_json(recipe).encode()).hexdigest()


def _by_name(value: Any) -> Any:
    """A copy in which every `_target_` is the name of its class."""
    if isinstance(value, Mapping):
        return {
            key: item.rpartition(".")[2] if key == "_target_" else _by_name(item)
            for key, item in value.items()
        }
    return [_by_name(item) for item in value] if isinstance(value, list) else value


def _without(config: Mapping[str, Any], dotted: set[str]) -> dict[str, Any]:
    """A copy of `config` without the given dotted keys."""
    heads = {key.partition(".")[0]: key.partition(".")[2] for key in dotted}
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key in dotted:
            continue
        if key in heads and isinstance(value, Mapping):
            nested = {name.partition(".")[2] for name in dotted if name.startswith(f"{key}.")}
            value = _without(value, nested)
        kept[key] = value
    return kept


def _changed(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config` without what equals its default."""
    kept = {}
    for key, value in config.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value = _changed(value, default)
            default = {}
        if not (key in defaults and value == default):
            kept[key] = value
    return kept


def targets_of(config: Any) -> Iterator[str]:
    """Every `_target_` in a nested configuration."""
    if isinstance(config, Mapping):
        if isinstance(config.get("_target_"), str):
            yield config["_target_"]
        for value in config.values():
            yield from targets_of(value)
    elif isinstance(config, list):
        for value in config:
            yield from targets_of(value)


def fingerprint(targets: Iterable[str]) -> str:
    """Digest of the source files behind `targets` and of all effllm modules they import."""
    files: dict[str, str] = {}
    pending = [target.rpartition(".")[0] for target in targets]
    while pending:
        module = pending.pop()
        if module in files or not module.startswith("effllm"):
            continue
        files[module], imported = _source(module)
        pending.extend(imported)
    files = {module: digest for module, digest in files.items() if digest}
    return hashlib.sha256(canonical_json(files).encode()).hexdigest()


@cache
def _source(module: str) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's file, and the effllm modules it names in import statements.

    A file that compiles others counts with them.

    What `from package import name` imports may be a module as well; names that are none have no
    digest.
    """
    path = _ROOT.joinpath(*module.split(".")[1:])
    files = (path.with_suffix(".py"), path / "__init__.py")
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return "", ()
    text = file.read_text(encoding="utf-8")
    compiled = []
    if module == "effllm.kernels.native":  # what it compiles stands beside it
        compiled = sorted([*file.parent.glob("*.cpp"), *file.parent.glob("*.h")])
    named = [
        (package, *(f"{package}.{name}" for name in re.findall(r"\w+", names)))
        for package, names in _IMPORT.findall(text)
    ]
    whole = "".join([text, *(one.read_text(encoding="utf-8") for one in compiled)])
    return hashlib.sha256(whole.encode()).hexdigest(), tuple(m for group in named for m in group)
