"""What a run would do with each instance: reuse it, compute it, or leave it alone.

Planning is driven by need: the leaves of the graph (or `until`) are wanted, and a missing result
wants its inputs. Nothing here touches a payload or imports torch.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effllm.modules.errors import ConfigError
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.engine.graph import ARTIFACT_PREFIX, Instance, suggest
from effllm.pipelines.engine.identity import DIGEST_LENGTH, canonical_json
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


@dataclass(frozen=True)
class _Kin:
    """What results of about the same work have in common.

    Attributes:
        alike: digest of stage, plain settings but the seed, and what is seen of the inputs.
        models: where a checkpoint comes from, which is all that others see of it; else empty.
    """

    alike: str
    models: frozenset[str]

    @property
    def seen(self) -> str:
        """What stands for it in results that are made from it."""
        return ",".join(sorted(self.models)) or self.alike


def _kin(
    stage: str,
    kind: str,
    sources: Mapping[str, Any],
    config: Mapping[str, Any],
    made_of: list[_Kin],
) -> _Kin:
    names = sorted(source["name"] for source in sources.values())
    plain = {k: v for k, v in config.items() if k != "seed" and not isinstance(v, Mapping)}
    facts = canonical_json([stage, names, plain, sorted({parent.seen for parent in made_of})])
    models = frozenset(names).union(*(parent.models for parent in made_of))
    digest = hashlib.sha256(facts.encode()).hexdigest()
    return _Kin(digest, models if kind == Checkpoint.kind else frozenset())


def estimated_seconds(instances: list[Instance], store: Store) -> dict[str, float | None]:
    """What each instance may take: the median time of stored results like it, None without any.

    Results are alike if stage, plain settings and texts are the same and their models come from the
    same source: seeds, pruners, patterns may differ. Those with the same settings come first.
    Results of interrupted runs are left out: their times are of the last attempt.
    """
    stored = {_label(manifest): manifest for _, manifest in store.manifests()}
    kins: dict[str, _Kin] = {}

    def kin_of(label: str) -> _Kin:
        if label not in kins:
            if label not in stored:  # removed since
                return _Kin(label, frozenset())
            made = stored[label]
            parents = [
                kin_of(parent)
                for value in made["inputs"].values()
                for parent in ([value] if isinstance(value, str) else value)
            ]
            kins[label] = _kin(
                made["stage"], made["kind"], made["sources"], made["config"], parents
            )
        return kins[label]

    seconds: dict[str, list[tuple[Any, float]]] = {}
    for label, manifest in stored.items():
        if not manifest["timing"].get("resumed"):
            taken = float(manifest["timing"]["seconds"])
            seconds.setdefault(kin_of(label).alike, []).append((manifest["config"], taken))
    planned: dict[str, _Kin] = {}
    estimates: dict[str, float | None] = {}
    for one in instances:
        parents = [
            kin_of(_label(store.find(name.removeprefix(ARTIFACT_PREFIX))[1]))
            if name.startswith(ARTIFACT_PREFIX)
            else planned[name]
            for name in one.parents
        ]
        kin = _kin(one.stage, one.cls.OUTPUT.kind, one.sources, one.config, parents)
        planned[one.name] = kin
        like = seconds.get(kin.alike, [])
        times = [taken for config, taken in like if config == one.config]
        times = times or [taken for _, taken in like]
        estimates[one.name] = statistics.median(times) if times else None
    return estimates


def _label(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['stage']}/{manifest['digest'][:DIGEST_LENGTH]}"
