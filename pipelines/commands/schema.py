"""Types of the top-level configuration, so that a misspelt key is refused by name."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from effllm.modules.ranges import Word


@dataclass
class Execute:
    """Run controls.

    Attributes:
        dry_run: plan only.
        until: the only wanted stage instance; all leaves if null.
        refresh: instances to compute again though their results are complete.
        on_error: stop, or continue with what does not depend on the failed stage.
        objective: `<instance>:<metric>` that a sweep optimises, or null.
        device_map: auto to spread the targets of decoding stages over all GPUs, or null.
    """

    dry_run: bool = False
    until: str | None = None
    refresh: list[str] = field(default_factory=list)
    on_error: str = "stop"
    objective: str | None = None
    device_map: str | None = None


@dataclass
class Paths:
    """Where results go.

    Attributes:
        outputs: folder of the store.
    """

    outputs: Word


@dataclass
class Named:
    """What a run is called.

    Attributes:
        name: folder of its report; null: paper and scale, and the overrides that differ from them.
    """

    name: str | None = None


@dataclass
class Config:
    """The whole configuration; see conf/config.yaml."""

    paper: str = MISSING
    scale: str = MISSING
    seed: int = 0
    packages: list[str] = field(default_factory=list)
    execute: Execute = field(default_factory=Execute)
    run: Named = field(default_factory=Named)
    paths: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    calibration_data: dict[str, Any] = field(default_factory=dict)
    task_data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    pipeline: dict[str, Any] = field(default_factory=dict)


def register() -> None:
    """Make the schema known to Hydra under the name `schema`."""
    ConfigStore.instance().store(name="schema", node=Config)
