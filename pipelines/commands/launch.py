"""`run` and `plan`: from Hydra's configuration to an executed graph."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from effllm.modules.errors import ArtifactError, ConfigError
from effllm.pipelines.artifacts.measured import Report
from effllm.pipelines.commands import schema
from effllm.pipelines.commands.catalogue import CONF_DIR
from effllm.pipelines.commands.composing import (
    compose,
    differences,
    expanded,
    explained,
    resolve,
)
from effllm.pipelines.commands.memory import keep_freed_memory
from effllm.pipelines.commands.publishing import publish_report, refuse_other_report, report_name
from effllm.pipelines.engine.building import build, suggestion
from effllm.pipelines.engine.display import Display
from effllm.pipelines.engine.executor import Run
from effllm.pipelines.engine.graph import Instance, build_graph
from effllm.pipelines.engine.planning import Options, estimated_seconds, plan_statuses
from effllm.pipelines.engine.processor import timing_machine, wanted_device
from effllm.pipelines.engine.store import Store
from effllm.pipelines.engine.tracking import Logger
from effllm.pipelines.engine.work_folder import CANNOT_WRITE
from effllm.pipelines.words import columns, duration, time_left


def run_command(arguments: Sequence[str]) -> int:
    """`effllm run`: compose, execute, print where the report is.

    Raises:
        EffLLMError: what went wrong, on one line; also for whatever Hydra or OmegaConf refuse.
    """
    arguments = expanded(arguments)
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed by Hydra
    schema.register()
    failures: list[Exception] = []
    begun = False

    @hydra.main(version_base="1.3", config_path=CONF_DIR, config_name="config")
    def task(config: DictConfig) -> float | None:
        nonlocal begun
        begun = True
        job = HydraConfig.get()
        try:
            typed = list(job.overrides.task)
            told = differences(config, typed)
            return execute(config, Path(job.runtime.output_dir), told, typed)
        except Exception as error:
            if job.mode == RunMode.MULTIRUN:  # the launcher must know, it may be another process
                raise
            failures.append(error)  # Hydra would print a line of its own in front of it
            return None

    try:
        task()
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, arguments) from error
    except OSError as error:  # Hydra makes the run folder before we are asked
        if begun:
            raise
        raise _cannot_write(error) from error
    for failure in failures:
        if isinstance(failure, OSError) and failure.errno in CANNOT_WRITE:
            raise _cannot_write(failure) from failure
        raise failure
    return 0


def plan_command(overrides: Sequence[str], as_json: bool) -> int:
    """`effllm plan`: the stages of a run, and which of them are done."""
    config = compose(overrides)
    pipeline, sections = resolve(config)
    store = Store(Path(sections["paths"]["outputs"]))
    instances = _graph(pipeline, sections, store)
    _check_objective(sections["execute"]["objective"], instances)
    statuses = plan_statuses(instances, store, _options(sections, device="cpu"))
    seconds = estimated_seconds(instances, store)
    if as_json:
        rows = [
            {
                "instance": one.name,
                "stage": one.stage,
                "digest": one.digest,
                "status": statuses[one.name],
                "seconds": seconds[one.name],
                "inputs": one.inputs,
            }
            for one in instances
        ]
        print(json.dumps(rows, indent=1))
        return 0
    lines = []
    for one in instances:
        taken = seconds[one.name] if statuses[one.name] == "run" else None
        about = "" if taken is None else duration(taken)
        lines.append([statuses[one.name], one.name, f"{one.stage}/{one.digest[:12]}", about])
    print(*columns(lines), sep="\n")
    counts = {status: list(statuses.values()).count(status) for status in statuses.values()}
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    print(time_left(seconds[name] for name, status in statuses.items() if status == "run"))
    return 0


def execute(
    config: DictConfig, folder: Path, told: Sequence[str] = (), typed: Sequence[str] = ()
) -> float | None:
    """Execute a composed configuration; the objective of a sweep, or None.

    Args:
        config: the whole configuration.
        folder: of this run.
        told: what differs from the paper at this scale, see `differences`.
        typed: all overrides, for manifests.

    Raises:
        EffLLMError: if a stage fails, or the run would take the place of another one's report.
    """
    quieten_libraries()
    keep_freed_memory()
    pipeline, sections = resolve(config)
    store = Store(Path(sections["paths"]["outputs"]))
    instances = _graph(pipeline, sections, store)
    _check_objective(sections["execute"]["objective"], instances)
    if sections["execute"]["dry_run"]:
        statuses = plan_statuses(instances, store, _options(sections, device="cpu"))
        for one in instances:
            print(f"{statuses[one.name]:<10} {one.name}")
        return None
    facts = {"paper": sections["paper"], "scale": sections["scale"], "differs": list(told)}
    name = report_name(sections, told)
    refuse_other_report(store.root / "reports" / name, facts)
    _log_to(folder)
    run = Run(
        instances=instances,
        store=store,
        folder=folder,
        labels={"paper": sections["paper"], "scale": sections["scale"]},
        logger=build("logger", Logger, sections["logger"], packages=sections["packages"]),
        display=Display(),
        options=_options(sections, device=choose_device(sections["trainer"])),
        config={**sections, "pipeline": pipeline},
        command=shlex.join(["effllm", "run", *typed]),
    )
    if (store.root / "runs").resolve() not in folder.resolve().parents:
        run.display.line(
            f"note: {folder} is not below {store.root}/runs: effllm gc will not know of this run"
        )
    outcomes = run.execute()
    reports = [one for one in instances if issubclass(one.cls.OUTPUT, Report)]
    for one in reports:
        if outcomes[one.name].status != "not needed":
            own = name if len(reports) == 1 else f"{name}-{one.name}"
            run.display.line(f"report: {publish_report(store, one, own, facts)}")
    return _objective(sections["execute"]["objective"], instances, store)


def _graph(pipeline: dict[str, Any], sections: dict[str, Any], store: Store) -> list[Instance]:
    machine = timing_machine(wanted_device(sections["trainer"]))
    return build_graph(pipeline, store, sections["packages"], machine)


def _options(sections: dict[str, Any], device: str) -> Options:
    execute = sections["execute"]
    if execute["on_error"] not in ("stop", "continue"):
        raise ConfigError(f"execute.on_error: stop or continue, found {execute['on_error']!r}")
    return Options(
        until=execute["until"],
        refresh=tuple(execute["refresh"]),
        on_error=execute["on_error"],
        device=device,
        device_map=execute["device_map"],
    )


def choose_device(trainer: Mapping[str, Any]) -> str:
    """The device of a `conf/trainer`, the first of several; imports torch where it may be a GPU.

    Raises:
        ConfigError: for devices that are not there, or a strategy that cannot use them.
    """
    devices, strategy = trainer["devices"], trainer["strategy"]
    numbers = devices if isinstance(devices, list) else list(range(devices))
    if len(numbers) > 1 and strategy != "ddp_spawn":
        raise ConfigError(
            f"trainer.strategy={strategy}: several devices are used by ddp_spawn alone, others "
            "would start this command again; use it, or trainer.devices=1"
        )
    kind, _, number = wanted_device(trainer).partition(":")
    if kind != "cpu":
        import torch

        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if there > max(numbers):
            return f"cuda:{number}" if number else "cuda"
        if there:
            raise ConfigError(f"trainer.devices={devices}: this machine has {there} CUDA devices")
        if kind == "cuda":
            raise ConfigError("trainer.accelerator=gpu: no CUDA device found; use cpu or auto")
    if isinstance(devices, list):
        raise ConfigError(f"trainer.devices={devices}: processors have no numbers; say how many")
    return "cpu"


def _check_objective(wanted: str | None, instances: list[Instance]) -> None:
    """Refuse an objective that no stage of the pipeline can have."""
    if wanted is None:
        return
    name, colon, metric = wanted.partition(":")
    names = [instance.name for instance in instances]
    if not colon or not metric:
        raise ConfigError(f"execute.objective: expected <stage>:<metric>, found {wanted!r}")
    if name not in names:
        raise ConfigError(f"execute.objective: no stage {name!r}{suggestion(name, names)}")


def _objective(wanted: str | None, instances: list[Instance], store: Store) -> float | None:
    """Value of `<stage>:<metric>`; None if it was not computed or is not finite.

    Raises:
        ConfigError: if the stage has no such metric.
    """
    if wanted is None:
        return None
    name, _, metric = wanted.partition(":")
    instance = next(instance for instance in instances if instance.name == name)
    manifest = store.manifest(instance.stage, instance.digest)
    if manifest is None:
        return None
    metrics = manifest["metrics"]
    if metric not in metrics:
        raise ConfigError(
            f"execute.objective: {name} has no metric {metric!r}{suggestion(metric, metrics)}"
        )
    value = metrics[metric]
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


class _RunLog(logging.FileHandler):
    """A log that says on one line when it cannot be written, instead of tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say it once, and log no more."""
        reason = sys.exc_info()[1]
        print(f"warning: {self.baseFilename}: {reason}; nothing more is logged", file=sys.stderr)
        logging.getLogger("effllm").removeHandler(self)


def _log_to(folder: Path) -> None:
    """Write our log to `run.log` of the run folder; libraries stay silent on the terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("effllm")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handler = _RunLog(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def quieten_libraries() -> None:
    """Progress bars and advice of libraries would break the one display."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", module=r"lightning\..*")


def _cannot_write(error: OSError) -> ArtifactError:
    return ArtifactError(
        f"{error.filename or 'outputs'}: {error.strerror}; see that it can be written to, or "
        "choose another folder with paths.outputs=…"
    )
