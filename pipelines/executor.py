"""Run a graph: reuse what is complete, resume what was interrupted, compute the rest.

Execution is driven by need. The leaves of the graph (or `until`) are wanted; an instance runs
only if its result is missing and something wanted depends on it. So results of long chains
survive the clean-up of what they were made from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from effllm.modules.errors import ArtifactError, ConfigError, DataError, EffLLMError
from effllm.pipelines import provenance
from effllm.pipelines.artifacts import Artifact
from effllm.pipelines.display import Display
from effllm.pipelines.files import write_json
from effllm.pipelines.graph import (
    ARTIFACT_PREFIX,
    Instance,
    build_source,
    load_stage,
)
from effllm.pipelines.identity import canonical_json
from effllm.pipelines.planning import Options, plan_statuses, stale_instances
from effllm.pipelines.stage import PROGRESS_FOLDER, Many, Metrics, Stage, StageContext
from effllm.pipelines.store import Store
from effllm.pipelines.tracking import Logger, StageLabels

log = logging.getLogger("effllm")

# Errors of the file system that a person can repair.
CANNOT_WRITE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
)


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
        logger: makes trackers.
        display: shows progress.
        options: run controls.
    """

    instances: list[Instance]
    store: Store
    folder: Path
    labels: Mapping[str, str]
    logger: Logger
    display: Display
    options: Options
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _made: set[str] = field(default_factory=set)  # digests computed by this run

    def execute(self) -> dict[str, Outcome]:
        """Run what is needed; outcomes by instance name.

        Raises:
            EffLLMError: the first failure, with `on_error=stop`; otherwise after all else is done.
        """
        self.store.require_writable()
        statuses = plan_statuses(self.instances, self.store, self.options)
        needed = [one for one in self.instances if statuses[one.name] == "run"]
        needed.sort(key=lambda instance: bool(instance.parents))  # what comes from outside first
        for instance in self.instances:
            status = statuses[instance.name]
            self.outcomes[instance.name] = Outcome("hit" if status == "hit" else status)
        self._warn_of_other_code()
        for instance in needed:  # whatever is missing outside shows before any work is done
            for source in instance.cls.SOURCES:
                try:
                    build_source(instance, source).check()
                except DataError as error:
                    raise DataError(f"{instance.name}: {error}") from error
        stages = {one.name: build_stage(one) for one in needed}
        self.display.begin([(one.name, one.stage) for one in needed], len(self.instances))
        failures: list[str] = []
        checked = False
        try:
            for instance in needed:
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
        except BaseException:
            self.display.end()
            with contextlib.suppress(OSError):  # the error on its way says more than this one
                self._write_run_file()
                self._link_artifacts()
            raise
        self.display.end()
        self._write_run_file()
        self._link_artifacts()
        if failures:
            raise EffLLMError(f"{len(failures)} stages failed: {'; '.join(failures)}")
        return self.outcomes

    def _failed(self, name: str) -> bool:
        outcome = self.outcomes.get(name)
        return outcome is not None and outcome.status in ("failed", "skipped")

    def _check_results(self) -> None:
        """Let each class without inputs look at its results together, before any work on them."""

        def warn(message: str) -> None:
            self.display.line(f"warning: {message}")
            log.warning("%s", message)

        there = ("hit", "ran", "resumed")
        used = [
            one
            for one in self.instances
            if not one.parents and self.outcomes[one.name].status in there
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
            work = store.work(instance.stage, instance.digest)
            resumed = prepare_work(work, instance, _payload_digest(inputs))
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
                    kind = load_stage(manifest["target"], name).OUTPUT
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
        labels = StageLabels(
            instance=instance.name,
            stage=instance.stage,
            digest=instance.digest,
            group=f"{self.labels['paper']}-{self.labels['scale']}-{self.folder.name}",
            config=instance.config,
            paper=self.labels["paper"],
            scale=self.labels["scale"],
        )
        tracker = self.logger.start(labels, self.store.root, self.folder)
        self.display.start(instance.name, resumed)
        provenance.reset_peak_memory(self.options.device)
        started, clock = provenance.now(), time.perf_counter()

        def warn(message: str) -> None:
            warnings.append(message)
            self.display.line(f"warning: {instance.name}: {message}")

        ctx = StageContext(
            instance=instance.name,
            inputs=inputs,
            workdir=work,
            device=self.options.device,
            seed=int(instance.config.get("seed", 0)),
            log=lambda metrics, step=None: tracker.log(metrics, step),
            progress=self.display.progress,
            warn=warn,
            device_map=self.options.device_map,
        )
        published: Path | None = None
        metrics: Metrics = {}
        try:
            metrics = stage.run(ctx)
            seconds = time.perf_counter() - clock
            manifest = {
                "schema": 1,
                "stage": instance.stage,
                "instance": instance.name,
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
                "command": " ".join(["effllm", *sys.argv[1:]]),
                "tracking": {"run_id": getattr(getattr(tracker, "run", None), "id", None)},
            }
            published = self.store.publish(work, manifest)
        except BaseException as error:
            seconds = time.perf_counter() - clock
            self.outcomes[instance.name] = Outcome("failed", seconds, {}, str(error))
            _record_error(work, error)
            self.display.fail(instance.name, seconds)
            tracker.finish({}, None, 130 if isinstance(error, KeyboardInterrupt) else 1)
            reason = _why_it_cannot_write(error)
            if reason:
                raise ArtifactError(
                    f"cannot write to {work.name}: {reason}; free some space or choose another "
                    "folder with paths.outputs=…, then run again: it resumes"
                ) from error
            raise
        tracker.finish(metrics, published, 0)
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
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "run.json.partial"
        write_json(partial, {**self.labels, "stages": stages})
        partial.replace(self.folder / "run.json")

    def _link_artifacts(self) -> None:
        links = self.folder / "artifacts"
        links.mkdir(parents=True, exist_ok=True)
        for one in self.instances:
            link, target = links / one.name, self.store.folder(one.stage, one.digest)
            if target.is_dir() and not link.is_symlink():
                link.symlink_to(target.resolve())


def build_stage(instance: Instance) -> Stage:
    """The stage with its nested objects built from their `_target_`.

    Raises:
        ConfigError: if a value does not fit its class; names the instance.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        config = {"_target_": instance.target, "_convert_": "all", **instance.config}
        stage: Stage = instantiate(config)
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{instance.name}: {cause}") from error
    return stage


def prepare_work(work: Path, instance: Instance, inputs: str) -> bool:
    """Make the work folder ready; True if progress of an earlier attempt is kept.

    Progress made by other code or from other inputs is thrown away, and so are half-written
    payload files.

    Args:
        work: the work folder.
        instance: what will run in it.
        inputs: digest of the inputs' payloads.
    """
    record = work / "work.json"
    wanted = {"instance": instance.name, "code": instance.code, "inputs": inputs}
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        same = all(found[key] == wanted[key] for key in ("code", "inputs"))
    except (OSError, ValueError, KeyError):
        same = False
    progress = work / PROGRESS_FOLDER
    if work.exists():
        for path in work.iterdir():
            if path == progress and same:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    work.mkdir(parents=True, exist_ok=True)
    write_json(record, wanted)
    return progress.is_dir() and any(progress.iterdir())


def _payload_digest(inputs: Mapping[str, Artifact | list[Artifact]]) -> str:
    """Digest of what the inputs hold, not of how they were made."""
    outputs = {
        slot: [one.manifest["outputs"] for one in (value if isinstance(value, list) else [value])]
        for slot, value in inputs.items()
    }
    return hashlib.sha256(canonical_json(outputs).encode()).hexdigest()


def _record_error(work: Path, error: BaseException) -> None:
    """Leave a note in the work folder, if it can still be written to."""
    note = {"type": type(error).__name__, "message": str(error), "time": provenance.now()}
    try:
        write_json(work / "error.json", note)
    except OSError:
        log.warning("could not write error.json")


def _why_it_cannot_write(error: BaseException) -> str | None:
    """The reason, if an error is that of a full or read-only disk."""
    from safetensors import SafetensorError

    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return error.strerror or str(error)
    if isinstance(error, SafetensorError) and "serializ" in str(error) and "os error" in str(error):
        return str(error)  # safetensors writes files without Python's own errors
    return None
