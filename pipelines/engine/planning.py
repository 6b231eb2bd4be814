"""What a run would do with each instance: reuse it, compute it, or leave it alone.

Planning is driven by need: the leaves of the graph (or `until`) are wanted, and a missing result
wants its inputs. Nothing here touches a payload or imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from effllm.modules.errors import ConfigError
from effllm.pipelines.engine.graph import Instance, suggest
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
