"""Supernets and what a search chose from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effllm.pipelines.artifacts.base import Artifact

if TYPE_CHECKING:
    from effllm.modules.structural.supernet import Supernet


class SupernetFiles(Artifact):
    """Every key matrix at several sparsities: one file each, and `supernet.json`."""

    kind = "supernet"

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
