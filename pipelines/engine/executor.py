"""Run a graph: reuse what is complete, resume what was interrupted, compute the rest.

Execution is driven by need. The leaves of the graph (or `until`) are wanted; an instance runs
only if its result is missing and something wanted depends on it. So results of long chains
survive the clean-up of what they were made from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from effllm.modules.errors import ArtifactError, ConfigError, DataError, EffLLMError
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.kinds import kind_named
from effllm.pipelines.artifacts.measured import Report
from effllm.pipelines.engine import provenance
from effllm.pipelines.engine.building import construct, one_a_line
from effllm.pipelines.engine.display import Display
from effllm.pipelines.engine.graph import (
    ARTIFACT_PREFIX,
    Instance,
    build_source,
    check_fields,
)
from effllm.pipelines.engine.identity import SCHEMA
from effllm.pipelines.engine.interrupts import raise_if_asked
from effllm.pipelines.engine.planning import (
    Options,
    estimated_seconds,
    plan_statuses,
    stale_instances,
)
from effllm.pipelines.engine.store import Store, live_run
from effllm.pipelines.engine.tracking import Command, Logger, Tracker
from effllm.pipelines.engine.work_folder import (
    payload_digest,
    prepare_work,
    record_error,
    why_it_cannot_write,
)
from effllm.pipelines.files import (
    replace_synced,
    write_json,
)
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext

log = logging.getLogger("effllm")
_THERE = ("hit", "ran", "resumed")  # statuses of what has a result


@dataclass
class Outcome:
    """What happened to one instance: hit, ran, resumed, failed, skipped or not needed."""

    status: str
    seconds: float = 0.0
    metrics: Metrics = field(default_factory=dict)
    error: str | None = None


@dataclass
class Run:
    """One execution of a pipeline.

    Attributes:
        instances: in topological order.
        store: where results go.
        folder: run folder: config, log, `run.json`, links to results.
        labels: paper and scale.
        logger: makes the tracker.
        display: shows progress.
        options: run controls.
        config: the resolved configuration, for the tracker.
        command: what was typed, for manifests.
    """

    instances: list[Instance]
    store: Store
    folder: Path
    labels: Mapping[str, str]
    logger: Logger
    display: Display
    options: Options
    config: Mapping[str, Any] = field(default_factory=dict)
    command: str = field(default_factory=lambda: shlex.join(["effllm", *sys.argv[1:]]))
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _made: set[str] = field(default_factory=set)  # digests computed by this run
    _tracker: Tracker = field(default_factory=Tracker)

    def execute(self) -> dict[str, Outcome]:
        """Run what is needed; outcomes by instance name.

        Raises:
            EffLLMError: the first failure, with `on_error=stop`; otherwise after all else is done.
        """
        self.store.require_writable()
        with live_run(self.folder) as self.folder:
            with self.store.registering():  # from here on `effllm gc` keeps what is needed
                statuses = plan_statuses(self.instances, self.store, self.options)
                self.outcomes = {name: Outcome(status) for name, status in statuses.items()}
                self._write_run_file()
            return self._execute_needed(statuses)

    def _execute_needed(self, statuses: Mapping[str, str]) -> dict[str, Outcome]:
        needed = [one for one in self.instances if statuses[one.name] == "run"]
        needed.sort(key=lambda instance: bool(instance.parents))  # what comes from outside first
        self._warn_of_other_code()
        for instance in needed:  # whatever is missing outside shows before any work is done
            for source in instance.cls.SOURCES:
                try:
                    build_source(instance, source).check()
                except DataError as error:
                    raise DataError(f"{instance.name}: {error}") from error
        stages = build_stages(needed)
        if needed:
            self._tracker = self.logger.start(
                Command(self.labels, self.config, self.store.root, self.folder)
            )
        seconds = estimated_seconds(self.instances, self.store)
        self.display.begin({one.name: seconds[one.name] for one in needed}, len(self.instances))
        failures: list[str] = []
        checked = False
        try:
            for instance in needed:
                raise_if_asked()
                if instance.parents and not checked:
                    checked = True
                    self._check_results()
                broken = [p for p in instance.parents if self._failed(p)]
                if broken:
                    self.outcomes[instance.name] = Outcome("skipped", error=f"needs {broken[0]}")
                    continue
                try:
                    self._run_one(instance, stages[instance.name])
                except EffLLMError as error:
                    failures.append(f"{instance.name}: {error}")
                    if self.options.on_error == "stop":
                        raise type(error)(failures[-1]) from error
                    self.display.line(f"failed: {failures[-1]}")
                self._write_run_file()
        except BaseException as error:
            self.display.end()
            with contextlib.suppress(OSError):  # the error on its way says more than this one
                self._write_run_file()
                self._link_artifacts()
                self._tracker.finish(130 if isinstance(error, KeyboardInterrupt) else 1)
            raise
        self.display.end()
        self._write_run_file()
        self._link_artifacts()
        for one in self.instances:
            if issubclass(one.cls.OUTPUT, Report) and self.outcomes[one.name].status in _THERE:
                self._tracker.report(one, self.store.folder(one.stage, one.digest))
        self._tracker.finish(1 if failures else 0)
        if failures:
            raise EffLLMError("\n".join(failures))
        return self.outcomes

    def _failed(self, name: str) -> bool:
        outcome = self.outcomes.get(name)
        return outcome is not None and outcome.status in ("failed", "skipped")

    def _check_results(self) -> None:
        """Let each class without inputs look at its results together, before any work on them."""

        def warn(message: str) -> None:
            self.display.line(f"warning: {message}")
            log.warning("%s", message)

        used = [
            one
            for one in self.instances
            if not one.parents and self.outcomes[one.name].status in _THERE
        ]
        for cls in dict.fromkeys(one.cls for one in used):
            results = {
                one.name: partial(self.store.open, one.stage, one.digest, cls.OUTPUT)
                for one in used
                if one.cls is cls
            }
            cls.check_results(results, warn)

    def _warn_of_other_code(self) -> None:
        """Point out reused results that were made by other code."""
        changed = []
        for instance in self.instances:
            if self.outcomes[instance.name].status != "hit":
                continue
            manifest = self.store.manifest(instance.stage, instance.digest)
            if manifest is not None and manifest["code"]["fingerprint"] != instance.code:
                changed.append(instance.name)
        if changed:
            self.display.line(
                f"note: {len(changed)} reused results were made by other code "
                f"({', '.join(changed[:4])}{', …' if len(changed) > 4 else ''}); if results should "
                f"differ, run again with execute.refresh=[{changed[0]}]"
            )

    def _run_one(self, instance: Instance, stage: Stage) -> None:
        store, stale = self.store, instance.name in stale_instances(self.instances, self.options)
        waiting = lambda: self.display.line(  # noqa: E731
            f"{instance.name}: another process is making this result; waiting for it"
        )
        with store.lock(instance.stage, instance.digest, waiting):
            if instance.digest in self._made:
                self._reuse(instance, "the same recipe as a stage before")
                return
            if not stale:
                if store.finish_publishing(instance.stage, instance.digest):
                    self._reuse(instance, "was complete, only not yet published")
                    return
                if store.check_quickly(instance.stage, instance.digest) is not None:
                    self._reuse(instance, "made meanwhile by another process")
                    return
            try:
                inputs = self._open_inputs(instance)
            except EffLLMError as error:
                self.outcomes[instance.name] = Outcome("failed", error=str(error))
                raise
            discarded = store.discard_unusable(instance.stage, instance.digest)
            if discarded:
                self.display.line(f"note: {instance.name}: {discarded}")
            work = store.work(instance.stage, instance.digest)
            resumed = prepare_work(work, instance, payload_digest(inputs))
            self._execute(instance, stage, inputs, work, resumed)
            self._made.add(instance.digest)

    def _reuse(self, instance: Instance, why: str) -> None:
        self.outcomes[instance.name] = Outcome("hit")
        self.display.skip(instance.name, why)

    def _open_inputs(self, instance: Instance) -> dict[str, Artifact | list[Artifact]]:
        by_name = {one.name: one for one in self.instances}
        inputs: dict[str, Artifact | list[Artifact]] = {}
        for slot, names in instance.inputs.items():
            declared = instance.cls.INPUTS[slot]
            opened = []
            for name in names:
                if name.startswith(ARTIFACT_PREFIX):
                    _, manifest = self.store.find(name.removeprefix(ARTIFACT_PREFIX))
                    where, digest = manifest["stage"], manifest["digest"]
                    kind = kind_named(manifest["kind"], name)
                else:
                    parent = by_name[name]
                    where, digest, kind = parent.stage, parent.digest, parent.cls.OUTPUT
                opened.append(self.store.open(where, digest, kind))
            inputs[slot] = opened if isinstance(declared, Many) else opened[0]
        return inputs

    def _execute(
        self,
        instance: Instance,
        stage: Stage,
        inputs: dict[str, Artifact | list[Artifact]],
        work: Path,
        resumed: bool,
    ) -> None:
        warnings: list[str] = []
        self.display.start(instance.name, resumed)
        provenance.reset_peak_memory(self.options.device)
        started, clock = provenance.now(), time.perf_counter()

        def warn(message: str) -> None:
            warnings.append(message)
            self.display.line(f"warning: {instance.name}: {message}")

        def record(metrics: Mapping[str, Any], step: int) -> None:
            raise_if_asked()
            self._tracker.log(instance, metrics, step)

        def progress(done: int, total: int, unit: str) -> None:
            raise_if_asked()
            self.display.progress(done, total, unit)

        ctx = StageContext(
            instance=instance.name,
            inputs=inputs,
            workdir=work,
            device=self.options.device,
            seed=int(instance.config.get("seed", 0)),
            log=record,
            progress=progress,
            warn=warn,
            device_map=self.options.device_map,
        )
        try:
            metrics = stage.run(ctx)
            seconds = time.perf_counter() - clock
            manifest = {
                "schema": SCHEMA,
                "stage": instance.stage,
                "instance": instance.name,
                "kind": instance.cls.OUTPUT.kind,
                "target": instance.target,
                "version": instance.cls.VERSION,
                "digest": instance.digest,
                "config": instance.config,
                "volatile": sorted(instance.cls.VOLATILE),
                "inputs": {
                    slot: [one.label for one in value] if isinstance(value, list) else value.label
                    for slot, value in inputs.items()
                },
                "sources": instance.sources,
                "metrics": metrics,
                "warnings": warnings,
                "seed": instance.config.get("seed"),
                "code": {**provenance.code_version(), "fingerprint": instance.code},
                "env": provenance.environment(self.options.device),
                "timing": {
                    "started": started,
                    "finished": provenance.now(),
                    "seconds": round(seconds, 3),
                    "resumed": resumed,
                    "peak_rss_bytes": provenance.peak_memory(),
                    "peak_device_bytes": provenance.peak_device_memory(self.options.device),
                },
                "command": self.command,
                "tracking": {"run_id": self._tracker.run_id},
            }
            published = self.store.publish(work, manifest)
        except BaseException as error:
            seconds = time.perf_counter() - clock
            self.outcomes[instance.name] = Outcome("failed", seconds, {}, str(error))
            reason = why_it_cannot_write(error, work)
            record_error(work, error)
            self.display.fail(instance.name, seconds)
            if reason:
                raise ArtifactError(f"{reason}, then run again: it resumes") from error
            raise
        self._tracker.done(manifest, published)
        self.outcomes[instance.name] = Outcome("resumed" if resumed else "ran", seconds, metrics)
        self.display.done(instance.name, seconds, metrics)
        log.info("%s %s %.1f s %s", instance.name, instance.digest[:12], seconds, metrics)
        gc.collect()

    def _write_run_file(self) -> None:
        stages = {
            one.name: {
                "stage": one.stage,
                "digest": one.digest,
                **dataclasses.asdict(self.outcomes[one.name]),
            }
            for one in self.instances
        }
        partial = self.folder / "run.json.partial"
        write_json(partial, {**self.labels, "stages": stages})
        replace_synced(partial, self.folder / "run.json")

    def _link_artifacts(self) -> None:
        links = self.folder / "artifacts"
        links.mkdir(parents=True, exist_ok=True)
        for one in self.instances:
            link, target = links / one.name, self.store.folder(one.stage, one.digest)
            if target.is_dir() and not link.is_symlink():
                link.symlink_to(target.resolve())


def build_stages(instances: list[Instance]) -> dict[str, Stage]:
    """The stages by instance name, with their nested objects.

    Raises:
        ConfigError: all values that do not fit their classes, a line each.
    """
    problems: list[str] = []
    stages: dict[str, Stage] = {}
    for instance in instances:
        found = check_fields(instance)
        problems += found
        if found:
            continue
        try:
            config = {"_target_": instance.target, **instance.config}
            stages[instance.name] = construct(instance.key, config, instance.packages)
        except EffLLMError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(one_a_line(problems))
    return stages
