"""What a stage is, and what it is given when it runs.

A stage is a frozen, keyword-only dataclass: its fields are its hyper-parameters, its class
constants its contract, `run` its work. It reads its inputs and its context and nothing else: no
latest folders, no environment variables, no network beyond declared sources.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from effllm.modules.errors import ArtifactError
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.files import link_or_copy, replace_synced, write_rows

if TYPE_CHECKING:
    import torch

Metrics = dict[str, float | int | str | bool | None]
AnyArtifact = TypeVar("AnyArtifact", bound=Artifact)

# Folders inside the work folder that hold progress, not payload; removed before publishing.
PROGRESS_FOLDER = "progress"
ROWS_FILE = "rows.jsonl"


@dataclass(frozen=True)
class Many:
    """An input slot that takes any number of artifacts of one kind.

    Attributes:
        ordered: the stage tells them apart by their place, so the order enters the digest.
    """

    kind: type[Artifact]
    ordered: bool = False


class Source(Protocol):
    """An external model or data set that a stage reads."""

    def identity(self) -> dict[str, str]:
        """Name, revision and checksum; enters the digest."""

    def check(self) -> None:
        """Raise, with the remedy, if the source is known to be missing."""


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """Base of all stages.

    Class constants:
        VERSION: bump when the same configuration means another result.
        PART_VERSIONS: class of a nested object -> its version, when only results that have such an
            object mean another result.
        INPUTS: slot -> kind of artifact, or `Many(kind)`.
        OUTPUT: kind of artifact that `run` writes to the work folder.
        VOLATILE: dotted fields that must not change results, such as a micro batch size.
        DIGEST_DEFAULTS: field -> value that keeps results from before the field existed.
        SOURCES: fields that are external sources.
        TIMED: the result is a time, so the machine that measured it enters the digest.
    """

    VERSION: ClassVar[int] = 1
    PART_VERSIONS: ClassVar[Mapping[str, int]] = {}
    INPUTS: ClassVar[Mapping[str, type[Artifact] | Many]] = {}
    OUTPUT: ClassVar[type[Artifact]] = Artifact
    VOLATILE: ClassVar[frozenset[str]] = frozenset()
    DIGEST_DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    SOURCES: ClassVar[tuple[str, ...]] = ()
    TIMED: ClassVar[bool] = False

    @classmethod  # noqa: B027 - a hook; most stages may stand beside their like
    def check_together(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse instances of this class that must not stand in one pipeline.

        Args:
            configs: instance name -> fields, nested objects as plain data.

        Raises:
            ConfigError: names the instances and the remedy.
        """

    @classmethod  # noqa: B027 - a hook, as above
    def check_results(
        cls, results: Mapping[str, Callable[[], Artifact]], warn: Callable[[str], None]
    ) -> None:
        """Refuse results of this class, without inputs, that must not be used in one run.

        Args:
            results: instance name -> what opens its result.
            warn: told of what is doubtful only.

        Raises:
            DataError: names the instances and the remedy.
        """

    @abstractmethod
    def run(self, ctx: StageContext) -> Metrics:
        """Do the work: read `ctx.inputs`, write the payload to `ctx.workdir`, return metrics."""


@dataclass
class StageContext:
    """What a running stage may use.

    Attributes:
        instance: name of this instance in the pipeline, for messages.
        inputs: slot -> artifact, or list of artifacts for `Many` slots.
        workdir: the only place to write to; kept when the stage is interrupted.
        device: torch device string.
        seed: root of all random streams of this stage.
        log: records metrics of a step, `log({"loss": 1.0}, 3)`.
        progress: reports units done, `progress(done, total, "block")`.
        warn: records that a fallback was taken; shown, counted and stored.
        device_map: transformers' word for how a model too large for `device` is spread, or None.
    """

    instance: str
    inputs: Mapping[str, Artifact | list[Artifact]]
    workdir: Path
    device: str
    seed: int
    log: Callable[[Mapping[str, Any], int], None]
    progress: Callable[[int, int, str], None]
    warn: Callable[[str], None] = field(default=lambda message: None)
    device_map: str | None = None

    def input(self, slot: str, kind: type[AnyArtifact]) -> AnyArtifact:
        """The artifact of a single-valued slot."""
        artifact = self.inputs[slot]
        assert isinstance(artifact, kind), f"{slot} is not a {kind.__name__}"
        return artifact

    def input_list(self, slot: str, kind: type[AnyArtifact]) -> list[AnyArtifact]:
        """The artifacts of a `Many` slot."""
        artifacts = self.inputs[slot]
        assert isinstance(artifacts, list)
        return [artifact for artifact in artifacts if isinstance(artifact, kind)]

    def generator(self, purpose: str) -> torch.Generator:
        """An independent, named random stream; equal for equal seed and purpose."""
        import torch

        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    @property
    def progress_dir(self) -> Path:
        """Folder for state that lets an interrupted stage go on; not part of the result."""
        folder = self.workdir / PROGRESS_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save_progress(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Store tensors under a name, atomically: the file is whole or absent, whatever happens."""
        from safetensors.torch import save_file

        final = self.progress_dir / f"{name}.safetensors"
        partial = final.with_suffix(".partial")
        partial.touch()
        mode = partial.stat().st_mode  # of a new file here; safetensors' own are their owner's only
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial)
        partial.chmod(mode)
        replace_synced(partial, final)

    def save_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Store finished rows, atomically: they are all there or as they were before."""
        final = self.progress_dir / ROWS_FILE
        partial = final.with_suffix(".partial")
        write_rows(partial, rows)
        replace_synced(partial, final)

    def load_rows(self) -> list[dict[str, Any]]:
        """Rows stored before an interruption; empty at the first attempt.

        Raises:
            ArtifactError: if the file cannot be read.
        """
        file = self.progress_dir / ROWS_FILE
        if not file.is_file():
            return []
        try:
            with file.open(encoding="utf-8") as lines:
                return [json.loads(line) for line in lines]
        except ValueError as error:
            raise self._damaged(file) from error

    def _damaged(self, file: Path) -> ArtifactError:
        return ArtifactError(
            f"{self.instance}: progress file {file.name} is damaged; delete the folder "
            f"{self.workdir.name} below outputs/work and run again"
        )

    def keep_progress(self, name: str, filename: str) -> None:
        """Make a stored progress file part of the result, without moving it away."""
        link_or_copy(self.progress_dir / f"{name}.safetensors", self.workdir / filename)

    def load_progress(self, name: str) -> dict[str, torch.Tensor] | None:
        """Tensors stored under a name, or None.

        Raises:
            ArtifactError: if the file cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self.progress_dir / f"{name}.safetensors"
        if not file.is_file():
            return None
        try:
            return load_file(file)
        except SafetensorError as error:
            raise self._damaged(file) from error
