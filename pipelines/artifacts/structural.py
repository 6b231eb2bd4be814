"""Supernets and what a search chose from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.files import write_json, write_rows

if TYPE_CHECKING:
    from effllm.modules.structural.supernet import Supernet


class SupernetFiles(Artifact):
    """Every key matrix at several sparsities: one file each, and `supernet.json`."""

    kind = "supernet"

    @staticmethod
    def write(folder: Path, iteration: int, sublayers: Iterable[Mapping[str, Any]]) -> None:
        """Write all but the matrices.

        Args:
            folder: of the stage, with a file for every key matrix.
            iteration: rounds of pruning and search that it begins, from 1.
            sublayers: a row each, as of `registry_row`.
        """
        from effllm.modules.structural.supernet import REGISTRY

        write_json(folder / REGISTRY, {"iteration": iteration, "sublayers": list(sublayers)})

    def open(self) -> Supernet:
        """The supernet; matrices are read when they are asked for.

        Raises:
            ArtifactError: if a file is missing.
        """
        from effllm.modules.structural.supernet import Supernet

        return Supernet.open(self.path, self.label)


class Allocation(Artifact):
    """A level for every sub-layer, `allocation.json`, and how it was found, `history.jsonl`."""

    kind = "allocation"

    @staticmethod
    def write(
        folder: Path,
        supernet: Supernet,
        removed: Mapping[str, int],
        history: Iterable[Mapping[str, Any]],
    ) -> None:
        """Write the files of an allocation.

        Args:
            folder: of the stage.
            supernet: that it was searched in.
            removed: as it is read.
            history: a generation per row.
        """
        write_rows(folder / "history.jsonl", history)
        about = {"supernet": supernet.label, "iteration": supernet.iteration}
        write_json(folder / "allocation.json", {**about, "removed": dict(removed)})

    @property
    def supernet(self) -> str:
        """Label of the supernet that it belongs to."""
        return str(self.read_json("allocation.json")["supernet"])

    @property
    def iteration(self) -> int:
        """Rounds of pruning and search that it stands for."""
        return int(self.read_json("allocation.json")["iteration"])

    def removed(self) -> dict[str, int]:
        """Sub-layer name -> removed units."""
        return dict(self.read_json("allocation.json")["removed"])
