"""Budgets other than units: parameters, memory at a context length, measured latency.

Each is a table with the cost of every sub-layer at every level; what no level changes is left out.
"""

import statistics
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from effllm.modules.errors import ConfigError
from effllm.modules.modeling.blocks import decoder_blocks
from effllm.modules.ranges import PositiveFloat, PositiveInt, Share
from effllm.modules.structural.fitness import LevelModel
from effllm.modules.structural.search import Budget, CostBudget, State, UnitBudget
from effllm.modules.structural.sizes import SubLayerSize, sublayer_size
from effllm.modules.structural.units import Kept, SubLayer
from effllm.modules.timing import seconds_of

Cost = Literal["parameters", "memory", "latency"]
Table = list[list[float]]  # table[sub-layer][level]

_REPEATS = 15  # of a latency


class BudgetFactory(Protocol):
    """Makes the budget of a search."""

    def build(self, levels: LevelModel, centre: State, known: Table | None = None) -> Budget:
        """The budget of a search that starts at `centre`; a known table is not measured anew."""


@dataclass(frozen=True)
class Units:
    """Heads and neurons, each as many as the start: the paper's budget."""

    def build(self, levels: LevelModel, centre: State, known: Table | None = None) -> Budget:
        """Nothing has to be measured."""
        return UnitBudget()


@dataclass(frozen=True, kw_only=True)
class Costs:
    """A cost that heads and neurons share.

    Args:
        cost: `parameters` left in the blocks; `memory` in bytes, weights and cache; `latency` in
            seconds, measured here.
        limit: most that it may be; null for what the start costs.
        band: how far below the limit a candidate may be, as a share.
        context: tokens in the cache, for memory and latency.

    Source: ours.
    """

    cost: Cost
    limit: PositiveFloat | None = None
    band: Share = 0.01
    context: PositiveInt = 1024

    def __post_init__(self) -> None:
        if self.cost not in ("parameters", "memory", "latency"):
            raise ConfigError(f"cost: parameters, memory or latency, found {self.cost!r}")
        if not 0 < self.band < 1 or self.context < 1:
            raise ConfigError("costs: 0 < band < 1 and a context of at least one token")

    def build(self, levels: LevelModel, centre: State, known: Table | None = None) -> Budget:
        """The table, and the limit."""
        space = levels.space
        table = known or [
            [
                self._of(levels, one, levels.level(place, level))
                for level in range(len(space.removals[place]))
            ]
            for place, one in enumerate(space.layers)
        ]
        start = CostBudget(table, 0.0, self.band).total(centre)
        budget = CostBudget(table, start if self.limit is None else self.limit, self.band)
        if not budget.allows(centre):
            raise ConfigError(
                f"unit_budget: the search starts at {self.cost} {start:g}, outside "
                f"{(1 - self.band) * budget.limit:g} to {budget.limit:g}; choose the sparsity that "
                "meets the limit, or limit=null"
            )
        return budget

    def _of(self, levels: LevelModel, layer: SubLayer, kept: Kept) -> float:
        block = decoder_blocks(levels.model)[layer.block]
        size = sublayer_size(block, layer, kept.units)
        if self.cost == "parameters":
            return float(size.parameters)
        if self.cost == "memory":
            bytes_each = levels.model.dtype.itemsize
            return float(bytes_each * (size.parameters + 2 * size.cached * self.context))
        return _latency(levels, size, self.context)


@torch.no_grad()
def _latency(levels: LevelModel, size: SubLayerSize, context: int) -> float:
    """Median seconds of one token through matrices of this size, and over its cache."""
    if not size.inner:
        return 0.0
    dtype, device = levels.model.dtype, levels.model.device
    into = [
        nn.Linear(size.width, size.inner, bias=False, dtype=dtype, device=device)
        for _ in range(size.matrices - 1)
    ]
    out = nn.Linear(size.inner, size.width, bias=False, dtype=dtype, device=device)
    hidden = torch.randn(1, size.width, dtype=dtype, device=device)
    cache = torch.randn(2, context, max(size.cached, 1), dtype=dtype, device=device)

    def step() -> None:
        inner = into[0](hidden)
        for other in into[1:]:
            inner = inner * other(hidden)
        if size.cached:
            cache[1].T @ (cache[0] @ hidden[0, :1].expand(size.cached))
        out(inner)

    return statistics.median(seconds_of(step, device) for _ in range(_REPEATS))
