"""Orders of channels, with what they were chosen by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.files import write_json, write_rows

if TYPE_CHECKING:
    from torch import Tensor


class Permutation(Artifact):
    """One order per site, int32, and the order of each layer's inputs that they make."""

    kind = "permutation"

    @staticmethod
    def write(
        folder: Path,
        orders: Mapping[str, Tensor],
        layers: Mapping[str, Tensor],
        rows: Sequence[Mapping[str, Any]],
        about: Mapping[str, Any],
    ) -> None:
        """Write the files of a permutation.

        Args:
            folder: of the stage.
            orders: (n,) per site.
            layers: (C,) per layer, `<block>.<name>`.
            rows: what is known of each site.
            about: level, pattern, pruner and search, as plain data.
        """
        import torch
        from safetensors.torch import save_file

        for name, tensors in (("orders", orders), ("layers", layers)):
            stored = {key: value.to(torch.int32).contiguous() for key, value in tensors.items()}
            save_file(stored, folder / f"{name}.safetensors")
        write_rows(folder / "sites.jsonl", rows)
        write_json(folder / "about.json", about)

    def orders(self) -> dict[str, Tensor]:
        """(n,) int64 per site."""
        return self._read("orders")

    def layer_orders(self) -> dict[str, Tensor]:
        """(C,) int64 per layer, `<block>.<name>`."""
        return self._read("layers")

    @property
    def about(self) -> dict[str, Any]:
        """Level, pattern, pruner and search."""
        return dict(self.read_json("about.json"))

    def _read(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        found = load_file(self.path / f"{name}.safetensors")
        return {key: value.long() for key, value in found.items()}
