"""Where a command is recorded besides the store: nowhere, CSV files, TensorBoard, W&B.

The store is the truth and these mirror it. A command is one record: its configuration, the metrics
of its stages, its report. A stage that logs while it runs, as training does, has one of its own.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from effllm.modules.errors import ConfigError
from effllm.pipelines.engine.graph import Instance
from effllm.pipelines.files import naming

_METHOD = ("method", "pattern", "seed")  # what tells the rows of a report apart


@dataclass(frozen=True)
class Command:
    """What a tracker is told of a command.

    Attributes:
        labels: paper and scale.
        config: the resolved configuration.
        outputs: folder of the store.
        folder: of this run.
    """

    labels: Mapping[str, str]
    config: Mapping[str, Any]
    outputs: Path
    folder: Path


class Tracker:
    """Records a command; this one nothing."""

    run_id: str | None = None

    def log(self, instance: Instance, metrics: Mapping[str, Any], step: int) -> None:
        """Metrics of a step of a stage that runs."""

    def done(self, manifest: Mapping[str, Any], folder: Path) -> None:
        """A stage has made its result."""

    def report(self, instance: Instance, folder: Path) -> None:
        """A report is there: page, figures, `results.json`."""

    def finish(self, exit_code: int) -> None:
        """The command ends."""


class Logger(Protocol):
    """Makes trackers; chosen by the config group `logger`."""

    def start(self, command: Command) -> Tracker:
        """Begin to record a command."""


@dataclass(frozen=True, kw_only=True)
class NoLogger:
    """Records nothing; everything is still in the manifests."""

    def start(self, command: Command) -> Tracker:
        """Begin to record nothing."""
        del command
        return Tracker()


@dataclass(frozen=True, kw_only=True)
class CsvLogger:
    """In the run folder `results.csv`, and `curves/<stage>.csv` for each stage that logs."""

    def start(self, command: Command) -> Tracker:
        """Begin new files."""
        return _CsvTracker(command.folder)


class _CsvTracker(Tracker):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun: set[Path] = set()
        self._append("results.csv", "stage", "", {})

    def log(self, instance: Instance, metrics: Mapping[str, Any], step: int) -> None:
        self._append(f"curves/{instance.name}.csv", "step", step, metrics)

    def done(self, manifest: Mapping[str, Any], folder: Path) -> None:
        self._append("results.csv", "stage", manifest["instance"], manifest["metrics"])

    def report(self, instance: Instance, folder: Path) -> None:
        self._append("results.csv", "stage", instance.name, _figures(_rows(folder)))

    def _append(self, name: str, key: str, value: Any, metrics: Mapping[str, Any]) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), path.open("a" if path in self.begun else "w", newline="") as file:
            writer = csv.writer(file)
            if path not in self.begun:
                writer.writerow([key, "metric", "value"])
            writer.writerows((value, *metric) for metric in metrics.items())
        self.begun.add(path)


@dataclass(frozen=True, kw_only=True)
class TensorBoardLogger:
    """In the run folder `tensorboard/<stage>` for each stage that logs: curves alone."""

    def start(self, command: Command) -> Tracker:
        """Begin without a file.

        Raises:
            ConfigError: if TensorBoard is not installed.
        """
        if find_spec("tensorboard") is None:
            raise ConfigError("logger=tensorboard: not installed; pip install tensorboard")
        return _TensorBoardTracker(command.folder / "tensorboard")


class _TensorBoardTracker(Tracker):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writers: dict[str, Any] = {}

    def log(self, instance: Instance, metrics: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if instance.name not in self.writers:
            self.writers[instance.name] = SummaryWriter(self.folder / instance.name)
        for name, value in metrics.items():
            self.writers[instance.name].add_scalar(name, value, step)

    def finish(self, exit_code: int) -> None:
        for writer in self.writers.values():
            writer.close()


@dataclass(frozen=True, kw_only=True)
class WandbLogger:
    """A Weights & Biases run for the command, and one of its group for each stage that logs.

    Args:
        project: project name.
        entity: account or team; None for the default one.
        mode: `offline` (files below outputs/wandb, to be synced later), `online`, or `disabled`.
    """

    project: str
    entity: str | None
    mode: str

    def start(self, command: Command) -> Tracker:
        """Begin a run."""
        folder = command.outputs.resolve() / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        # Homes cannot always be written to; the settings of `wandb login` stay where they are.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "data"))
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
        return _WandbTracker(self, command)

    def begin(self, command: Command, **about: Any) -> Any:
        """A run of the command's group."""
        import wandb

        return wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,  # type: ignore[arg-type]
            dir=command.outputs,
            group="-".join([*command.labels.values(), command.folder.name]),
            tags=list(command.labels.values()),
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, x_disable_stats=True
            ),
            **about,
        )


@dataclass
class _WandbTracker(Tracker):
    logger: WandbLogger
    command: Command
    stages: dict[str, Any] = field(default_factory=dict)  # runs of those that log, by instance
    metrics: list[tuple[str, str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run = self.logger.begin(
            self.command,
            job_type="command",
            name=self.command.folder.name,
            config=dict(self.command.config),
        )
        self.run_id = str(self.run.id)

    def log(self, instance: Instance, metrics: Mapping[str, Any], step: int) -> None:
        if instance.name not in self.stages:
            self.stages[instance.name] = self.logger.begin(
                self.command,
                job_type=instance.stage,
                name=instance.name,
                config={**instance.config, "digest": instance.digest},
            )
            # Not wandb's own step, which may not fall: a stage may train several times.
            self.stages[instance.name].define_metric("*", step_metric="step")
        self.stages[instance.name].log({**metrics, "step": step})

    def done(self, manifest: Mapping[str, Any], folder: Path) -> None:
        import wandb

        stage, name = manifest["stage"], manifest["instance"]
        # Only the manifest, which holds every file's checksum: payloads stay in the store.
        record = wandb.Artifact(
            f"{stage}-{manifest['digest'][:12]}",
            type=stage,
            metadata={key: manifest[key] for key in ("instance", "digest", "inputs", "metrics")},
        )
        record.add_file(str(folder / "manifest.json"))
        run = self.stages.pop(name, self.run)
        run.log_artifact(record)
        if run is not self.run:
            run.summary.update(manifest["metrics"])
            run.finish()
        self.metrics += ((name, *metric) for metric in manifest["metrics"].items())

    def report(self, instance: Instance, folder: Path) -> None:
        import wandb

        rows = _rows(folder)
        self.run.summary.update(_figures(rows))
        pictures = sorted((folder / "figures").glob("*.png"))
        self.run.log(
            {
                f"{instance.name}/results": _table(rows),
                f"{instance.name}/page": wandb.Html(str(folder / "index.html")),
                **{f"{instance.name}/{one.stem}": wandb.Image(str(one)) for one in pictures},
            }
        )

    def finish(self, exit_code: int) -> None:
        names = ("stage", "metric", "value")
        rows = [dict(zip(names, row, strict=True)) for row in self.metrics]
        if rows:
            self.run.log({"metrics": _table(rows)})
        for run in (*self.stages.values(), self.run):
            run.finish(exit_code=exit_code)


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of a report's `results.json`, nested values by their path: `metrics/ppl`."""
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return [dict(_flat(row, "")) for row in rows]


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}/{key}" if path else key)
    else:
        yield path, json.dumps(value) if isinstance(value, list) else value


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Measured numbers of result rows, by what they are of: `SDS (Wanda)/2:4/0/ppl`."""
    found = {}
    for row in rows:
        told = [str(row[key]) for key in _METHOD if row.get(key) not in (None, "")]
        for path, value in row.items():
            group, _, measure = path.partition("/")
            if group == "metrics" and isinstance(value, int | float):
                found["/".join([*told, measure])] = value
    return found


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    names: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
    data = [[row.get(str(name)) for name in names] for row in rows]
    return wandb.Table(columns=names, data=data, allow_mixed_types=True)
