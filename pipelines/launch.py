"""`run` and `plan`: from Hydra's configuration to an executed graph."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from effllm.modules.errors import ArtifactError, ConfigError, EffLLMError
from effllm.pipelines import schema
from effllm.pipelines.artifacts import Report
from effllm.pipelines.display import Display
from effllm.pipelines.executor import CANNOT_WRITE, Outcome, Run
from effllm.pipelines.files import write_json
from effllm.pipelines.graph import Instance, build_graph
from effllm.pipelines.memory import keep_freed_memory
from effllm.pipelines.planning import Options, plan_statuses
from effllm.pipelines.store import Store

RUN_FILE = "run.json"  # beside a report: what it is of
CONF_DIR = str(Path(__file__).resolve().parent.parent / "conf")
_SECTIONS = ("execute", "paths", "trainer", "logger", "run")
# Overrides that a report's name leaves out: they change no results, or stand in it anyway.
_NOT_TOLD = (*_SECTIONS, "hydra", "local", "paper", "scale")
_LONGEST_NAME = 80  # characters of a report's name beside paper and scale


def run_command(arguments: Sequence[str]) -> int:
    """`effllm run`: compose, execute, print where the report is.

    Raises:
        EffLLMError: what went wrong, on one line; also for whatever Hydra or OmegaConf refuse.
    """
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed by Hydra
    schema.register()
    failures: list[EffLLMError] = []

    @hydra.main(version_base="1.3", config_path=CONF_DIR, config_name="config")
    def task(config: DictConfig) -> float | None:
        job = HydraConfig.get()
        try:
            told = differences(config, list(job.overrides.task))
            return execute(config, Path(job.runtime.output_dir), told)
        except EffLLMError as error:
            if job.mode == RunMode.MULTIRUN:  # the launcher must know, it may be another process
                raise
            failures.append(error)  # Hydra would print a line of its own in front of it
            return None

    _refuse_unknown_options(arguments)
    try:
        task()
    except (HydraException, OmegaConfBaseException) as error:
        raise _one_line(error) from error
    except OSError as error:  # Hydra makes the run folder before we are asked
        if error.errno not in CANNOT_WRITE:
            raise
        raise ArtifactError(
            f"cannot write to {error.filename} ({error.strerror}); free some space or choose "
            "another folder with paths.outputs=…"
        ) from error
    if failures:
        raise failures[0]
    return 0


def plan_command(arguments: Sequence[str]) -> int:
    """`effllm plan`: the stages of a run, and which of them are done."""
    as_json = "--json" in arguments
    config = compose([one for one in arguments if one != "--json"])
    pipeline, sections = resolve(config)
    store = Store(Path(sections["paths"]["outputs"]))
    instances = build_graph(pipeline, store)
    statuses = plan_statuses(instances, store, _options(sections, device="cpu"))
    if as_json:
        rows = [
            {
                "instance": one.name,
                "stage": one.stage,
                "digest": one.digest,
                "status": statuses[one.name],
                "inputs": one.inputs,
            }
            for one in instances
        ]
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(one.name) for one in instances)
    for one in instances:
        print(f"{statuses[one.name]:<10} {one.name:<{width}}  {one.stage}/{one.digest[:12]}")
    counts = {status: list(statuses.values()).count(status) for status in statuses.values()}
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    return 0


def compose(overrides: Sequence[str], name: str = "config") -> DictConfig:
    """The configuration that `run` (or another verb with a file of its own) would use.

    Raises:
        ConfigError: on one line.
    """
    schema.register()
    try:
        with hydra.initialize_config_dir(CONF_DIR, version_base="1.3"):
            return hydra.compose(name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise _one_line(error) from error


def resolve(config: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain data: the pipeline, and the sections about the machine.

    Raises:
        ConfigError: for a missing mandatory value or a broken interpolation.
    """
    try:
        pipeline = OmegaConf.to_container(config.pipeline, resolve=True, throw_on_missing=True)
        sections = {
            key: OmegaConf.to_container(config[key], resolve=True, throw_on_missing=True)
            for key in _SECTIONS
        }
        sections |= {"paper": config.paper, "scale": config.scale, "seed": config.seed}
    except OmegaConfBaseException as error:
        raise _one_line(error) from error
    assert isinstance(pipeline, dict)
    return pipeline, sections  # type: ignore[return-value]


def differences(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """What a run was told beside paper and scale; empty if that leaves its pipeline as it was."""
    told = sorted(
        override
        for override in overrides
        if re.split(r"[./@:=]", override.lstrip("+~"))[0] not in _NOT_TOLD
    )
    plain = [f"paper={config.paper}", f"scale={config.scale}"]
    try:
        usual, _ = resolve(hydra.compose("config", overrides=plain))
    except (ConfigError, HydraException, OmegaConfBaseException):
        return told  # a paper that is not whole without them
    return told if usual != resolve(config)[0] else []


def execute(config: DictConfig, folder: Path, told: Sequence[str] = ()) -> float | None:
    """Execute a composed configuration; the objective of a sweep, or None.

    Args:
        config: the whole configuration.
        folder: of this run.
        told: what differs from the paper at this scale, see `differences`.

    Raises:
        EffLLMError: if a stage fails, or the run would take the place of another one's report.
    """
    quieten_libraries()
    keep_freed_memory()
    pipeline, sections = resolve(config)
    store = Store(Path(sections["paths"]["outputs"]))
    instances = build_graph(pipeline, store)
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
        logger=hydra.utils.instantiate(sections["logger"]),
        display=Display(),
        options=_options(sections, device=sections["trainer"]["device"]),
    )
    outcomes = run.execute()
    reports = [one for one in instances if issubclass(one.cls.OUTPUT, Report)]
    for one in reports:
        if outcomes[one.name].status != "not needed":
            own = name if len(reports) == 1 else f"{name}-{one.name}"
            run.display.line(f"report: {publish_report(store, one, own, facts)}")
    return _objective(sections["execute"]["objective"], instances, store, outcomes)


def report_name(sections: dict[str, Any], told: Sequence[str]) -> str:
    """Folder of a run's report: `run.name`, or paper and scale and what differs from them.

    Names are safe in shells and short: what was left out or replaced is told by a digest of it all.

    Raises:
        ConfigError: if `run.name` is no name for a folder.
    """
    name = sections["run"]["name"]
    if name is not None:
        if (
            not re.fullmatch(r"\w[\w.=,@+-]*", str(name), re.ASCII)
            or len(str(name)) > _LONGEST_NAME
        ):
            raise ConfigError(
                f"run.name={name}: expected a name of at most {_LONGEST_NAME} letters, digits and "
                "-_.,=@+, the first of them a letter or digit"
            )
        return str(name)
    base, whole = f"{sections['paper']}-{sections['scale']}", ",".join(told)
    if not whole:
        return base
    safe = re.sub(r"[^\w.=,@+-]+", "_", whole, flags=re.ASCII)
    if safe != whole or len(safe) > _LONGEST_NAME:
        digest = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()
        safe = f"{safe[: _LONGEST_NAME - 9]}-{digest[:8]}"
    return f"{base}-{safe}"


def refuse_other_report(folder: Path, facts: dict[str, Any]) -> str | None:
    """Refuse to put a report in the place of one of another paper, scale or settings.

    Returns:
        The report that is there, if it is of the same settings.

    Raises:
        ConfigError: with the remedy.
    """
    if not (folder / RUN_FILE).is_file():
        return None
    found = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    if any(found[key] != value for key, value in facts.items()):
        raise ConfigError(
            f"{folder} holds the report of another run ({_told(found)}); choose another run.name, "
            "or delete that folder"
        )
    return str(found["report"])


def publish_report(store: Store, instance: Instance, name: str, facts: dict[str, Any]) -> str:
    """Copy a report artifact to `reports/<name>` and note there what the run differs in.

    Returns:
        Path of its page, and whose place it took if the same settings had another result before.
    """
    from effllm.pipelines.reports.page import add_note

    label = f"{instance.stage}/{instance.digest[:12]}"
    source, final = store.folder(instance.stage, instance.digest), store.root / "reports" / name
    partial = final.with_name(f".{name}-{os.getpid()}")
    (store.root / "locks").mkdir(exist_ok=True)
    with FileLock(store.root / "locks" / f"report-{name}.lock"):  # two equal runs may end at once
        before = refuse_other_report(final, facts)
        shutil.copytree(source, partial)
        write_json(partial / RUN_FILE, {**facts, "report": label})
        if facts["differs"]:
            add_note(partial, f"Differs from {_told(facts)}.")
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
    page = str(final / "index.html")
    return page if before in (None, label) else f"{page} (in place of {before})"


def _told(facts: dict[str, Any]) -> str:
    plain = f"paper={facts['paper']} scale={facts['scale']}"
    return ": ".join([plain, ", ".join(facts["differs"])] if facts["differs"] else [plain])


def _options(sections: dict[str, Any], device: str) -> Options:
    execute = sections["execute"]
    if execute["on_error"] not in ("stop", "continue"):
        raise ConfigError(f"execute.on_error: stop or continue, found {execute['on_error']!r}")
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(f"trainer.device={device}: no CUDA device found; use cpu or auto")
    return Options(
        until=execute["until"],
        refresh=tuple(execute["refresh"]),
        on_error=execute["on_error"],
        device=device,
        device_map=sections["trainer"]["device_map"],
    )


def _objective(
    wanted: str | None, instances: list[Instance], store: Store, outcomes: dict[str, Outcome]
) -> float | None:
    """Value of `<instance>:<metric>`; None if it is missing or not finite."""
    if wanted is None:
        return None
    name, _, metric = wanted.partition(":")
    found = [one for one in instances if one.name == name]
    if not found or name not in outcomes:
        raise ConfigError(f"execute.objective: no stage {name!r}")
    manifest = store.manifest(found[0].stage, found[0].digest)
    value = manifest["metrics"].get(metric) if manifest else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _log_to(folder: Path) -> None:
    """Write our log to `run.log` of the run folder; libraries stay silent on the terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("effllm")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(folder / "run.log")
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


def _refuse_unknown_options(arguments: Sequence[str]) -> None:
    """Hydra would print its usage and exit with another code."""
    from hydra._internal.utils import get_args_parser

    options = [one for one in arguments if one.startswith("-") and one not in ("-h", "--help")]
    unknown = [one for one in get_args_parser().parse_known_args(options)[1] if one[0] == "-"]
    if unknown:
        raise ConfigError(
            f"effllm run: unknown option {unknown[0]}; settings are given as key=value, options "
            "are listed by effllm run --help"
        )


def _one_line(error: Exception) -> ConfigError:
    parts = [str(error), str(error.__cause__ or "")]
    lines = [line.strip() for part in parts for line in part.splitlines() if line.strip()]
    return ConfigError(" ".join(dict.fromkeys(lines)))
