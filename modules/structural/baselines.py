"""Other ways to choose heads, neurons and blocks, under the same roof: same budgets, same tokens.

Each removes whole units and keeps the weights of the others as they are; none repairs by least
squares (`second` in `elimination` is the baseline that does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cosine_similarity

from effllm.modules.calibration.statistics import Energy
from effllm.modules.calibration.stream import BlockStream
from effllm.modules.errors import ConfigError
from effllm.modules.structural.compact import install
from effllm.modules.structural.sizes import sublayer_size
from effllm.modules.structural.units import KINDS, Kept, SubLayer, key_matrix


class StructuralBaseline(Protocol):
    """A way to choose units."""

    name: str

    def choose(
        self,
        stream: BlockStream,
        layers: Sequence[SubLayer],
        targets: Mapping[str, int],
        generator: Generator,
    ) -> dict[str, Kept]:
        """What is left of every sub-layer.

        Args:
            stream: windows in front of the dense model's first block; its model may be changed.
            layers: all sub-layers.
            targets: sub-layer name -> removed units of the uniform budget, whose sum per kind
                counts.
            generator: of random choices.
        """


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """The lowest scores of every sub-layer go, as many everywhere.

    Args:
        score: `random`; `magnitude`, squared norm of a unit's columns; `wanda`, sum of |W| times
            the input's norm over a unit, measured behind the blocks pruned before (Wanda-sp).

    Source: Wanda-sp as in FLAP's repository, lib/prune.py `prune_wanda_sp`.
    """

    score: Literal["random", "magnitude", "wanda"]

    def __post_init__(self) -> None:
        if self.score not in ("random", "magnitude", "wanda"):
            raise ConfigError(f"score: random, magnitude or wanda, found {self.score!r}")

    @property
    def name(self) -> str:
        """For reports."""
        return self.score

    def choose(
        self,
        stream: BlockStream,
        layers: Sequence[SubLayer],
        targets: Mapping[str, int],
        generator: Generator,
    ) -> dict[str, Kept]:
        """Block by block; only Wanda looks at the text."""
        kept = {}
        for index in range(len(stream.blocks)):
            mine = [one for one in layers if one.block == index]
            energies = {}
            if self.score == "wanda":
                energies = stream.collect(Energy, groups=[[one.key] for one in mine])
            for one in mine:
                weight = key_matrix(stream.model, one).read()
                scores = self._scores(weight, one, energies.get(one.key), generator)
                chosen = without_lowest(scores, targets[one.name])
                kept[one.name] = slice_of(weight, one, chosen)
                install(stream.model, one, kept[one.name])
            if self.score == "wanda":
                stream.advance()
        return kept

    def _scores(
        self, weight: Tensor, layer: SubLayer, energy: Tensor | None, generator: Generator
    ) -> Tensor:
        """(units,) float32."""
        if self.score == "random":
            return torch.rand(layer.units, generator=generator)
        if energy is None:
            channels = weight.float().square().sum(dim=0)
        else:
            channels = weight.float().abs().sum(dim=0) * energy.sqrt()
        return channels.view(layer.units, layer.size).sum(dim=1).cpu()


@dataclass(frozen=True, kw_only=True)
class Fluctuation:
    """FLAP: how much a channel's input varies, times its weights; removed means become a bias.

    Scores are standardised over the channels of a sub-layer and ranked over depth, so that widths
    differ; a head's score is the mean of its channels', which FLAP's code squares first.

    Source: FLAP (arXiv:2312.11983), WIFV metric with standardisation and bias compensation, and
        lib/prune.py `prune_flap`.
    Deviates: heads and neurons are ranked apart, each under its own budget (FLAP ranks them
        together), so that all methods remove as many of each. Every sub-layer keeps at least one
        unit.
    """

    name = "flap"

    def choose(
        self,
        stream: BlockStream,
        layers: Sequence[SubLayer],
        targets: Mapping[str, int],
        generator: Generator,
    ) -> dict[str, Kept]:
        """One pass of the dense model, then one ranking per kind."""
        scores, means = {}, {}
        for index in range(len(stream.blocks)):
            mine = [one for one in layers if one.block == index]
            moments = stream.collect(Moments, groups=[[one.key] for one in mine])
            for one in mine:
                mean, variance = moments[one.key].unbind(0)
                weight = key_matrix(stream.model, one).read().float()
                weighted = variance * weight.square().sum(dim=0)
                scores[one.name] = fluctuation_scores(weighted, one).cpu()
                means[one.name] = mean
            stream.advance()
        kept = {}
        for kind in KINDS:
            mine = [one for one in layers if one.kind == kind]
            removed = sum(targets[one.name] for one in mine)
            lefts = _ranked_over_depth([scores[one.name] for one in mine], removed)
            for one, chosen in zip(mine, lefts, strict=True):
                weight = key_matrix(stream.model, one).read()
                gone = torch.ones(one.units * one.size)
                gone[one.channels(chosen)] = 0
                bias = weight.float() @ (means[one.name] * gone.to(weight.device))
                found = slice_of(weight, one, chosen)
                kept[one.name] = Kept(found.units, found.weight, bias)
        return kept


@dataclass(frozen=True, kw_only=True)
class BlockInfluence:
    """ShortGPT: whole blocks go, those that turn their input least.

    So many go that the parameters left are nearest to those of an even distribution whose heads
    still read all keys; influence is 1 - cosine between what enters and what leaves a block.

    Source: ShortGPT (arXiv:2403.03853).
    """

    name = "shortgpt"

    def choose(
        self,
        stream: BlockStream,
        layers: Sequence[SubLayer],
        targets: Mapping[str, int],
        generator: Generator,
    ) -> dict[str, Kept]:
        """One pass of the dense model."""
        influences = []
        for _ in stream.blocks:
            before = torch.cat(stream.hidden).float()
            stream.advance()
            after = torch.cat(stream.hidden).float()
            influences.append(1 - cosine_similarity(before, after, dim=-1).mean())
        order = torch.argsort(torch.stack(influences), stable=True).tolist()
        left = self._left(list(stream.blocks), layers, targets, order)
        kept = {}
        for one in layers:
            units = torch.arange(one.units if one.block in left else 0)
            kept[one.name] = slice_of(key_matrix(stream.model, one).read(), one, units)
        return kept

    def _left(
        self,
        blocks: Sequence[nn.Module],
        layers: Sequence[SubLayer],
        targets: Mapping[str, int],
        order: Sequence[int],
    ) -> set[int]:
        """Blocks that stay when the first ones in `order` go."""
        whole, even = [0] * len(blocks), 0  # parameters
        for one in layers:
            block, units = blocks[one.block], torch.arange(one.units)
            whole[one.block] += sublayer_size(block, one, units).parameters
            spread = torch.linspace(0, one.units - 1, one.units - targets[one.name]).round().long()
            even += sublayer_size(block, one, spread).parameters
        sizes = [sum(whole[one] for one in order[gone:]) for gone in range(len(order))]
        count = min(range(len(sizes)), key=lambda gone: abs(sizes[gone] - even))
        return set(order[count:])


def fluctuation_scores(channels: Tensor, layer: SubLayer) -> Tensor:
    """(units,) standardised scores of a sub-layer from (C,) weighted variances of its inputs."""
    if layer.kind == "attention":
        channels = channels.square()
    deviation = channels - channels.mean()
    spread = channels.std().clamp_min(torch.finfo(channels.dtype).tiny)
    return (deviation / spread).view(layer.units, layer.size).mean(dim=1)


class Moments:
    """Mean and variance of every input channel, (2, C) float32, by Welford's update."""

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        self.mean = torch.zeros(columns, dtype=torch.float32, device=device)
        self.squares = torch.zeros(columns, dtype=torch.float32, device=device)
        self.tokens = 0

    def update(self, inputs: Tensor) -> None:
        """Add (..., C) inputs."""
        tokens = inputs.reshape(-1, inputs.shape[-1]).to(torch.float32)
        count, mean = len(tokens), tokens.mean(dim=0)
        both, shift = self.tokens + count, mean - self.mean
        self.squares += (tokens - mean).square().sum(dim=0)
        self.squares += shift.square() * (self.tokens * count / both)
        self.mean += shift * (count / both)
        self.tokens = both

    def value(self) -> Tensor:
        """(2, C): mean, variance."""
        return torch.stack([self.mean, self.squares / max(self.tokens - 1, 1)])


def without_lowest(scores: Tensor, count: int) -> Tensor:
    """Places of all but the `count` lowest scores, rising; ties remove the lower place."""
    order = torch.argsort(scores, stable=True)
    return order[count:].sort().values


def slice_of(weight: Tensor, layer: SubLayer, units: Tensor) -> Kept:
    """The original columns of some units."""
    return Kept(units, weight[:, layer.channels(units).to(weight.device)].clone())


def _ranked_over_depth(scores: list[Tensor], removed: int) -> list[Tensor]:
    """Units that stay in each sub-layer when the lowest scores over all go, but one each stays."""
    safe = [one.clone() for one in scores]
    for one in safe:
        one[one.argmax()] = torch.inf
    chosen = without_lowest(torch.cat(safe), removed)
    lefts, start = [], 0
    for one in safe:
        inside = chosen[(chosen >= start) & (chosen < start + len(one))] - start
        lefts.append(inside)
        start += len(one)
    return lefts
