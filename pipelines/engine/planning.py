"""What a run would do with each instance: reuse it, compute it, or leave it alone.

Planning is driven by need: the leaves of the graph (or `until`) are wanted, and a missing result
wants its inputs. Nothing here touches a payload or imports torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effllm.modules.errors import ConfigError
from effllm.pipelines.engine.graph import ARTIFACT_PREFIX, Instance, suggest
from effllm.pipelines.engine.identity import DIGEST_LENGTH
from effllm.pipelines.engine.store import Store


@dataclass(frozen=True)
class Options:
    """Run controls, from the config group `execute` and the machine settings.

    Attributes:
        until: the only wanted instance; all leaves if None.
        refresh: instances to compute again though their results are complete.
        on_error: `stop`, or `continue` with what does not depend on the failed stage.
        device: torch device string.
        device_map: how decoding stages place large models, as in transformers; None: on `device`.
    """

    until: str | None = None
    refresh: tuple[str, ...] = ()
    on_error: str = "stop"
    device: str = "cpu"
    device_map: str | None = None


def plan_statuses(instances: list[Instance], store: Store, options: Options) -> dict[str, str]:
    """What a run would do with each instance: `hit`, `run`, or `not needed`.

    Raises:
        ConfigError: if `until` or `refresh` name no instance.
        ArtifactError: if a result that would be reused is damaged.
    """
    by_name = {one.name: one for one in instances}
    for name in [*options.refresh, *([options.until] if options.until else [])]:
        if name not in by_name:
            raise ConfigError(f"execute: no stage {name!r}; {suggest(name, by_name)}")
    stale = stale_instances(instances, options)
    parents = {parent for one in instances for parent in one.parents}
    wanted = [options.until] if options.until else [n for n in by_name if n not in parents]
    statuses = dict.fromkeys(by_name, "not needed")
    pending = [*wanted, *(name for name in stale if options.until is None)]
    while pending:
        name = pending.pop()
        if name not in by_name or statuses[name] != "not needed":
            continue
        one = by_name[name]
        if name not in stale and store.check_quickly(one.stage, one.digest) is not None:
            statuses[name] = "hit"
        else:
            statuses[name] = "run"
            pending += one.parents
    return statuses


def stale_instances(instances: list[Instance], options: Options) -> set[str]:
    """Instances to compute again: the refreshed ones, their twins, and all that follows."""
    stale = {one.digest for one in instances if one.name in options.refresh}
    digests = {one.name: one.digest for one in instances}
    for one in instances:
        if any(digests.get(parent) in stale for parent in one.parents):
            stale.add(one.digest)
    return {one.name for one in instances if one.digest in stale}


def estimated_seconds(instances: list[Instance], store: Store) -> dict[str, float | None]:
    """What each instance may take: the median time of stored results like it, None without any.

    A result is like an instance if its stage is the same and it goes back to the same models and
    texts, so that a smoke run says nothing about a real one. Those with the same settings come
    first. Results of interrupted runs are left out: their times are of the last attempt.
    """
    stored = {_label(manifest): manifest for _, manifest in store.manifests()}
    origins: dict[str, frozenset[str]] = {}

    def origin(label: str) -> frozenset[str]:
        """Names of all sources that a stored result goes back to."""
        if label not in origins:
            manifest = stored.get(label, {"sources": {}, "inputs": {}})
            found = _names(manifest["sources"])
            for labels in manifest["inputs"].values():
                for parent in [labels] if isinstance(labels, str) else labels:
                    found |= origin(parent)
            origins[label] = found
        return origins[label]

    seconds: dict[tuple[str, frozenset[str]], list[tuple[Any, float]]] = {}
    for label, manifest in stored.items():
        if not manifest["timing"].get("resumed"):
            key = manifest["stage"], origin(label)
            taken = float(manifest["timing"]["seconds"])
            seconds.setdefault(key, []).append((manifest["config"], taken))
    estimates: dict[str, float | None] = {}
    planned: dict[str, frozenset[str]] = {}
    for one in instances:
        planned[one.name] = _names(one.sources)
        for name in one.parents:
            if name.startswith(ARTIFACT_PREFIX):
                _, manifest = store.find(name.removeprefix(ARTIFACT_PREFIX))
                planned[one.name] |= origin(_label(manifest))
            else:
                planned[one.name] |= planned[name]
        like = seconds.get((one.stage, planned[one.name]), [])
        same = [taken for config, taken in like if config == one.config]
        times = same or [taken for _, taken in like]
        estimates[one.name] = statistics.median(times) if times else None
    return estimates


def _names(sources: Mapping[str, Mapping[str, str]]) -> frozenset[str]:
    return frozenset(source["name"] for source in sources.values())


def _label(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['stage']}/{manifest['digest'][:DIGEST_LENGTH]}"
