"""Where metrics of a run go besides the store: nowhere, CSV files, or Weights & Biases.

The store is the truth and these mirror it. One tracker lives as long as one executed stage.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from effllm.pipelines.files import naming


@dataclass(frozen=True)
class StageLabels:
    """What a tracker is told of a stage: enough to find it again."""

    instance: str
    stage: str
    digest: str
    paper: str
    scale: str
    group: str
    config: Mapping[str, Any]


class Tracker(Protocol):
    """Records one stage."""

    def log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        """Metrics while the stage runs."""

    def finish(
        self, metrics: Mapping[str, Any], artifact: Path | None, exit_code: int
    ) -> str | None:
        """Final metrics and the published folder; returns the run's id, if it has one."""


class Logger(Protocol):
    """Makes trackers; chosen by the config group `logger`."""

    def start(self, labels: StageLabels, outputs: Path, run_folder: Path) -> Tracker:
        """Begin to record a stage."""


@dataclass(frozen=True, kw_only=True)
class NoLogger:
    """Records nothing; everything is still in the manifests."""

    def start(self, labels: StageLabels, outputs: Path, run_folder: Path) -> Tracker:
        """Begin to record nothing."""
        del labels, outputs, run_folder
        return _NoTracker()


class _NoTracker:
    def log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        pass

    def finish(
        self, metrics: Mapping[str, Any], artifact: Path | None, exit_code: int
    ) -> str | None:
        return None


@dataclass(frozen=True, kw_only=True)
class CsvLogger:
    """One `metrics/<instance>.csv` per stage in the run folder: step, metric, value."""

    def start(self, labels: StageLabels, outputs: Path, run_folder: Path) -> Tracker:
        """Begin a new file."""
        del outputs
        folder = run_folder / "metrics"
        folder.mkdir(parents=True, exist_ok=True)
        return _CsvTracker(folder / f"{labels.instance}.csv")


class _CsvTracker:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("w", newline="", encoding="utf-8")
        self.writer = csv.writer(self.file)
        self.writer.writerow(["step", "metric", "value"])

    def log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        with naming(self.path):
            self.writer.writerows((step, name, value) for name, value in metrics.items())
            self.file.flush()

    def finish(
        self, metrics: Mapping[str, Any], artifact: Path | None, exit_code: int
    ) -> str | None:
        self.log(metrics, None)
        self.file.close()
        return None


@dataclass(frozen=True, kw_only=True)
class WandbLogger:
    """One Weights & Biases run per executed stage, grouped by pipeline run.

    Args:
        project: project name.
        entity: account or team; None for the default one.
        mode: `offline` (files below outputs/wandb, to be synced later), `online`, or `disabled`.
    """

    project: str
    entity: str | None
    mode: str

    def start(self, labels: StageLabels, outputs: Path, run_folder: Path) -> Tracker:
        """Begin a run."""
        del run_folder
        import wandb

        folder = outputs.resolve() / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        # Homes cannot always be written to; the settings of `wandb login` stay where they are.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "data"))
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "cache"))
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,  # type: ignore[arg-type]
            dir=outputs,
            group=labels.group,
            job_type=labels.stage,
            name=labels.instance,
            tags=[labels.paper, labels.scale],
            config={**labels.config, "digest": labels.digest},
            reinit="finish_previous",
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, x_disable_stats=True
            ),
        )
        return _WandbTracker(run, labels)


class _WandbTracker:
    def __init__(self, run: Any, labels: StageLabels) -> None:
        self.run = run
        self.labels = labels

    def log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        self.run.log(dict(metrics), step=step)

    def finish(
        self, metrics: Mapping[str, Any], artifact: Path | None, exit_code: int
    ) -> str | None:
        import wandb

        self.run.summary.update(dict(metrics))
        if artifact is not None:
            # Only the manifest, which holds every file's checksum: payloads stay in the store.
            record = wandb.Artifact(
                f"{self.labels.stage}-{self.labels.digest[:12]}", type=self.labels.stage
            )
            record.add_file(str(artifact / "manifest.json"))
            self.run.log_artifact(record)
        run_id = str(self.run.id)
        self.run.finish(exit_code=exit_code)
        return run_id
