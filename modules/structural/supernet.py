"""A supernet: every key matrix at several sparsities, pruned block by block.

Behind each pruned matrix the following sub-layers see the expectation over its levels, weighted by
the kept share: X' = sum_e w_e X V_e with w_e = (1 - S_e) / sum (1 - S). The key matrix is linear,
so that is one pass with the mean weight. Levels are whole units: the centre plus and minus
multiples of a step.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor
from transformers import PreTrainedModel

from effllm.modules.calibration.statistics import Gram
from effllm.modules.calibration.stream import BlockStream
from effllm.modules.errors import ArtifactError, ConfigError, NumericalError
from effllm.modules.structural.elimination import Elimination, LocalPruner
from effllm.modules.structural.units import Kept, SubLayer, key_matrix, padded

Accumulation = Literal["none", "level0", "expectation", "uniform", "random"]
ACCUMULATIONS = ("none", "level0", "expectation", "uniform", "random")
REGISTRY = "supernet.json"


def level_removals(units: int, centre: int, step: int, reach: int) -> list[int]:
    """Removed units of the levels -reach..reach around a centre; those outside 0..units drop out.

    Source: Týr, section 2.4, in whole units (ours).
    """
    levels = [centre + offset * step for offset in range(-reach, reach + 1)]
    return [one for one in levels if 0 <= one <= units]


def level_shares(
    removals: Sequence[int], units: int, centre: int, mode: Accumulation, generator: Generator
) -> list[float]:
    """Weight of each level in what the following sub-layers see; their sum is 1.

    Args:
        removals: removed units of each level; `centre` is one of them.
        units: units of the sub-layer.
        centre: level 0.
        mode: `expectation` by kept share (Týr, eq. 5); `uniform` equal; `random` one level drawn;
            `level0` the centre; `none` stands for the dense weights and has no shares.
        generator: of `random`.

    Raises:
        ConfigError: for another mode, or `none`.
    """
    if mode == "level0":
        return [float(one == centre) for one in removals]
    if mode == "uniform":
        return [1 / len(removals)] * len(removals)
    if mode == "random":
        drawn = int(torch.randint(len(removals), (1,), generator=generator))
        return [float(place == drawn) for place in range(len(removals))]
    if mode == "expectation":
        kept = [units - one for one in removals]
        return [one / sum(kept) for one in kept] if sum(kept) else [1 / len(kept)] * len(kept)
    raise ConfigError(f"accumulation: {', '.join(ACCUMULATIONS)}; found {mode!r}")


def mean_weight(sublayer: SubLayer, found: Elimination, shares: Sequence[float]) -> Tensor:
    """(R, C) float32 sum of the levels' zero-padded weights, each by its share."""
    parts = [
        share * padded(sublayer, Kept(level.kept, level.weight.float()))
        for level, share in zip(found.levels, shares, strict=True)
        if share
    ]
    return torch.stack(parts).sum(dim=0)


@dataclass(frozen=True, kw_only=True)
class SupernetBuilder:
    """Prunes block after block and lets the following ones see the mixture.

    Args:
        pruner: prunes one key matrix.
        accumulation: see `level_shares`; `none` leaves the dense weights in place.
        accumulate_at: `sublayer` measures the feed-forward network behind the pruned attention (the
            paper's order); `block` measures both in the dense block (the released code's).
    """

    pruner: LocalPruner
    accumulation: Accumulation = "expectation"
    accumulate_at: Literal["sublayer", "block"] = "sublayer"

    def __post_init__(self) -> None:
        if self.accumulation not in ACCUMULATIONS:
            raise ConfigError(
                f"accumulation: {', '.join(ACCUMULATIONS)}; found {self.accumulation!r}"
            )
        if self.accumulate_at not in ("sublayer", "block"):
            raise ConfigError(f"accumulate_at: sublayer or block, found {self.accumulate_at!r}")

    def build_block(
        self,
        stream: BlockStream,
        layers: Sequence[SubLayer],
        removals: Mapping[str, Sequence[int]],
        centre: Mapping[str, int],
        generator: Generator,
    ) -> dict[str, Elimination]:
        """Prune the current block's key matrices, install the mixture, and move on.

        Args:
            stream: stands in front of the block; its model's weights change.
            layers: the block's sub-layers.
            removals: sub-layer name -> removed units of its levels.
            centre: sub-layer name -> level 0.
            generator: of random paths.

        Raises:
            NumericalError: names the sub-layer.
        """
        found: dict[str, Elimination] = {}
        ordered = sorted(layers, key=lambda one: one.kind)  # attention, then ffn
        grams: dict[str, Tensor] = {}
        if self.accumulate_at == "block":
            grams = stream.collect(Gram, groups=[[one.key] for one in ordered])
        for one in ordered:
            if self.accumulate_at == "sublayer":
                grams = stream.collect(Gram, groups=[[one.key]])
            layer = key_matrix(stream.model, one)
            try:
                result = self.pruner.eliminate(
                    layer.read().cpu(),
                    grams[one.key].cpu(),
                    size=one.size,
                    removals=removals[one.name],
                )
            except NumericalError as error:
                raise NumericalError(f"{one.name}, layer {one.key}: {error}") from error
            found[one.name] = result
            if self.accumulation != "none":
                shares = level_shares(
                    removals[one.name], one.units, centre[one.name], self.accumulation, generator
                )
                layer.write(mean_weight(one, result, shares))
        stream.advance()
        return found


@dataclass(frozen=True)
class Supernet:
    """A stored supernet.

    Attributes:
        folder: where its files are.
        label: what it calls itself, to tell supernets apart.
        layers: its sub-layers.
        removals: sub-layer name -> removed units of its levels.
        centre: sub-layer name -> level 0.
        errors: sub-layer name -> lost share of the output energy per level.
        iteration: 1 around a uniform target, one more around each winner.
    """

    folder: Path
    label: str
    layers: list[SubLayer]
    removals: dict[str, list[int]]
    centre: dict[str, int]
    errors: dict[str, list[float]]
    iteration: int

    @classmethod
    def open(cls, folder: Path, label: str) -> "Supernet":
        """Read the registry and look for the files.

        Raises:
            ArtifactError: names a missing file.
        """
        registry = json.loads((folder / REGISTRY).read_text(encoding="utf-8"))
        rows = registry["sublayers"]
        keys = ("block", "kind", "key", "units", "size", "heads")
        layers = [SubLayer(**{key: row[key] for key in keys}) for row in rows]
        for one in layers:
            if not (folder / f"{one.name}.safetensors").is_file():
                raise ArtifactError(
                    f"supernet {label}: {one.name}.safetensors is missing; build it again with "
                    "execute.refresh=[<its instance>]"
                )
        named = dict(zip((one.name for one in layers), rows, strict=True))
        return cls(
            folder,
            label,
            layers,
            {name: row["removals"] for name, row in named.items()},
            {name: row["centre"] for name, row in named.items()},
            {name: row["errors"] for name, row in named.items()},
            registry["iteration"],
        )

    def kept(self, model: PreTrainedModel, sublayer: SubLayer, removed: int) -> Kept:
        """One level of a key matrix; the dense and the empty level need no file.

        Raises:
            ArtifactError: if the level or its weights are not there.
        """
        if removed not in self.removals[sublayer.name]:
            raise ArtifactError(
                f"supernet {self.label}: {sublayer.name} has no level with {removed} removed "
                f"units; it has {self.removals[sublayer.name]}"
            )
        weight = key_matrix(model, sublayer).read()
        if removed == 0:
            return Kept(torch.arange(sublayer.units), weight.clone())
        if removed == sublayer.units:
            return Kept(torch.arange(0), weight[:, :0].clone())
        stored = self._stored(sublayer.name)
        if f"weight-{removed}" not in stored:
            raise ArtifactError(
                f"supernet {self.label}: {sublayer.name}.safetensors lacks the weights of the "
                f"level with {removed} removed units; build it again"
            )
        return Kept(stored[f"kept-{removed}"].long(), stored[f"weight-{removed}"].to(weight.dtype))

    def _stored(self, name: str) -> dict[str, Tensor]:
        file = self.folder / f"{name}.safetensors"
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(
                f"supernet {self.label}: {file.name} cannot be read ({error}); build it again"
            ) from error


def level_tensors(sublayer: SubLayer, found: Elimination) -> dict[str, Tensor]:
    """What is stored of a sub-layer: order, and per level kept units and kept columns."""
    tensors = {
        "order": torch.tensor(found.order, dtype=torch.int32),
        "errors": torch.tensor([one.error for one in found.levels], dtype=torch.float64),
        "damping": torch.tensor(found.damping, dtype=torch.float64),
    }
    for level in found.levels:
        if 0 < level.removed < sublayer.units:
            tensors[f"kept-{level.removed}"] = level.kept.to(torch.int32)
            tensors[f"weight-{level.removed}"] = level.weight
    return tensors


def registry_row(
    sublayer: SubLayer, removals: Sequence[int], centre: int, errors: Sequence[float]
) -> dict[str, Any]:
    """A sub-layer's entry in `supernet.json`."""
    return {
        **asdict(sublayer),
        "centre": centre,
        "removals": list(removals),
        "errors": list(errors),
    }
