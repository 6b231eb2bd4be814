"""`run` and `plan`: from Hydra's configuration to an executed graph."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from effllm.modules.errors import ArtifactError, ConfigError, EffLLMError
from effllm.pipelines import schema
from effllm.pipelines.artifacts import Report
from effllm.pipelines.display import Display
from effllm.pipelines.executor import CANNOT_WRITE, Outcome, Run
from effllm.pipelines.graph import Instance, build_graph
from effllm.pipelines.memory import keep_freed_memory
from effllm.pipelines.planning import Options, plan_statuses
from effllm.pipelines.store import Store

CONF_DIR = str(Path(__file__).resolve().parent.parent / "conf")
_SECTIONS = ("execute", "paths", "trainer", "logger")


def run_command(arguments: Sequence[str]) -> int:
    """`effllm run`: compose, execute, print where the report is.

    Raises:
        EffLLMError: what went wrong, on one line; also for whatever Hydra or OmegaConf refuse.
    """
    arguments = with_home(arguments)
    sys.argv = [sys.argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of being printed by Hydra
    schema.register()
    failures: list[EffLLMError] = []

    @hydra.main(version_base="1.3", config_path=CONF_DIR, config_name="config")
    def task(config: DictConfig) -> float | None:
        job = HydraConfig.get()
        try:
            return execute(config, Path(job.runtime.output_dir))
        except EffLLMError as error:
            if job.mode == RunMode.MULTIRUN:  # the launcher must know, it may be another process
                raise
            failures.append(error)  # Hydra would print a line of its own in front of it
            return None

    _refuse_unknown_options(arguments)
    try:
        task()
    except (HydraException, OmegaConfBaseException) as error:
        raise one_line(error) from error
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
            return hydra.compose(name, overrides=with_home(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise one_line(error) from error


def with_home(overrides: Sequence[str]) -> list[str]:
    """Overrides with `~/` at the beginning of a value replaced; no shell does it after "="."""
    home = os.path.expanduser("~")
    return [re.sub(r"""(?<=[=\[,"'])~(?=/|["']?$)""", lambda _: home, one) for one in overrides]


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
        raise one_line(error) from error
    assert isinstance(pipeline, dict)
    return pipeline, sections  # type: ignore[return-value]


def execute(config: DictConfig, folder: Path) -> float | None:
    """Execute a composed configuration; the objective of a sweep, or None.

    Raises:
        EffLLMError: if a stage fails.
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
    for one in instances:
        if issubclass(one.cls.OUTPUT, Report) and outcomes[one.name].status != "not needed":
            run.display.line(f"report: {publish_report(store, one, sections)}")
    return _objective(sections["execute"]["objective"], instances, store, outcomes)


def publish_report(store: Store, instance: Instance, sections: dict[str, Any]) -> Path:
    """Copy a report artifact to `reports/<paper>-<scale>[-seed<n>]`; path of its page."""
    name = f"{sections['paper']}-{sections['scale']}"
    if sections["seed"]:
        name += f"-seed{sections['seed']}"
    source, final = store.folder(instance.stage, instance.digest), store.root / "reports" / name
    partial = final.with_name(f".{name}-{os.getpid()}")
    (store.root / "locks").mkdir(exist_ok=True)
    with FileLock(store.root / "locks" / f"report-{name}.lock"):  # two equal runs may end at once
        shutil.copytree(source, partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
    return final / "index.html"


def _options(sections: dict[str, Any], device: str) -> Options:
    execute = sections["execute"]
    if execute["on_error"] not in ("stop", "continue"):
        raise ConfigError(f"execute.on_error: stop or continue, found {execute['on_error']!r}")
    return Options(
        until=execute["until"],
        refresh=tuple(execute["refresh"]),
        on_error=execute["on_error"],
        device=device if device == "cpu" else choose_device(device),
        device_map=sections["trainer"]["device_map"],
    )


def choose_device(wanted: str) -> str:
    """The device that `trainer.device` means; imports torch.

    Raises:
        ConfigError: for one that is not there.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"trainer.device={wanted}: no CUDA device found; use cpu or auto")
    try:
        torch.zeros(1, device=wanted).item()
    except RuntimeError as error:
        raise ConfigError(
            f"trainer.device={wanted}: no such device here; use cpu or auto"
        ) from error
    return wanted


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


def one_line(error: Exception) -> ConfigError:
    """What Hydra or OmegaConf refuse, on one line that says what to type instead."""
    unread = re.match(r"Ambiguous value for argument '(.*)'\n", str(error))
    if isinstance(error, OverrideParseException) or unread:
        argument = unread[1] if unread else getattr(error, "override", "")
        return ConfigError(" ".join(_explain_quoting(argument).splitlines()))
    parts = [str(error), str(error.__cause__ or "")]
    lines = [line.strip() for part in parts for line in part.splitlines() if line.strip()]
    return ConfigError(" ".join(dict.fromkeys(lines)))


def _explain_quoting(argument: str) -> str:
    """What to type instead of an override that Hydra's grammar does not take."""
    key, found, value = argument.partition("=")
    if not found:
        return f"{argument!r}: settings are given as key=value; see effllm run --help"
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    # A backslash counts as one, but in front of a quote.
    inner = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + m[2].replace('"', '\\"'), bare)
    typed = shlex.quote(f'{key}="{inner}"')
    return (
        f"{argument}: this value has letters that mean something to Hydra; put it in quotes "
        f"inside the shell's quotes: {typed}"
    )
