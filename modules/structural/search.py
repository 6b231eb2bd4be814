"""Which level in which sub-layer: a (1 + lambda) evolution with selection in stages.

A state names one level per sub-layer. A move makes one sub-layer denser and another sparser by one
level, so that budgets are kept exactly. Many children are judged on few tokens, the best of them on
more; the parent joins the last stage and stays if no child beats it.

Source: Týr-the-Pruner, section 2.4 and search_sparsity_dist.py (after EvoPress). Ours: legal places
are listed before one is drawn, so that drawing ends; draws are bounded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator

from effllm.modules.errors import ConfigError, NumericalError
from effllm.modules.ranges import NonEmpty, NonNegativeInt, PositiveInt
from effllm.modules.structural.units import KINDS, SubLayer

State = tuple[int, ...]
Fitness = Callable[[State, int], float]

_TRIES = 30  # draws per wanted child


class Budget(Protocol):
    """What every state must keep."""

    def groups(self, layers: Sequence[SubLayer]) -> list[list[int]]:
        """Places that may trade with each other."""

    def allows(self, state: State) -> bool:
        """Whether a state is within the budget."""


@dataclass(frozen=True)
class UnitBudget:
    """As many heads, and as many neurons, as the first state: the paper's budget."""

    def groups(self, layers: Sequence[SubLayer]) -> list[list[int]]:
        """Attention trades with attention, feed-forward with feed-forward."""
        return [[i for i, one in enumerate(layers) if one.kind == kind] for kind in KINDS]

    def allows(self, state: State) -> bool:
        """Trades within a kind keep it."""
        return True


@dataclass(frozen=True)
class CostBudget:
    """A cost per sub-layer and level, whose sum stays below a limit and near it.

    Args:
        costs: costs[place][level].
        limit: most that a state may cost.
        band: a state must cost at least (1 - band) * limit.

    Source: ours.
    """

    costs: list[list[float]]
    limit: float
    band: float

    def groups(self, layers: Sequence[SubLayer]) -> list[list[int]]:
        """Heads trade with neurons, too."""
        return [list(range(len(layers)))]

    def total(self, state: State) -> float:
        """Cost of a state."""
        return sum(self.costs[place][level] for place, level in enumerate(state))

    def allows(self, state: State) -> bool:
        """Whether the cost is within the band."""
        return (1 - self.band) * self.limit <= self.total(state) <= self.limit


@dataclass(frozen=True)
class Space:
    """Sub-layers with their levels, rising in removed units.

    Attributes:
        layers: the sub-layers.
        removals: removals[place][level], removed units.
    """

    layers: Sequence[SubLayer]
    removals: Sequence[Sequence[int]]

    def state(self, removed: Sequence[int]) -> State:
        """The state with these removed units; they must be levels."""
        return tuple(
            list(levels).index(one) for levels, one in zip(self.removals, removed, strict=True)
        )

    def removed(self, state: State) -> list[int]:
        """Removed units per sub-layer."""
        return [levels[one] for levels, one in zip(self.removals, state, strict=True)]


def mutate(
    parent: State, space: Space, budget: Budget, generator: Generator, most_moves: int
) -> State | None:
    """A child by one or a few moves, biased to few; None if no move is legal.

    The number of moves is the smaller of two draws from 1..most_moves.
    """
    draws = torch.randint(1, most_moves + 1, (2,), generator=generator)
    child, groups = list(parent), budget.groups(space.layers)
    for _ in range(int(draws.min())):
        pairs = [
            (denser, [one for one in sparser if one != denser])
            for group in groups
            for sparser in [[p for p in group if child[p] + 1 < len(space.removals[p])]]
            for denser in group
            if child[denser] > 0
        ]
        pairs = [(denser, sparser) for denser, sparser in pairs if sparser]
        if not pairs:
            break
        denser, sparser = pairs[_draw(len(pairs), generator)]
        child[denser] -= 1
        child[sparser[_draw(len(sparser), generator)]] += 1
    return tuple(child) if tuple(child) != parent else None


def children(
    parent: State,
    space: Space,
    budget: Budget,
    generator: Generator,
    *,
    count: int,
    most_moves: int,
) -> list[State]:
    """Up to `count` different children within the budget; fewer where there are too few."""
    found: dict[State, None] = {}
    for _ in range(_TRIES * count):
        child = mutate(parent, space, budget, generator, most_moves)
        if child is not None and budget.allows(child):
            found[child] = None
        if len(found) == count:
            break
    return list(found)


def guided_children(parent: State, space: Space, budget: Budget, fitness: Fitness) -> list[State]:
    """Children by the trades that pay most when each change is looked at alone.

    Every sub-layer is tried one level denser and one level sparser on the text of the first stage.
    Within each group the largest gain is paired with the smallest loss, then the next ones, as long
    as the gain is larger. The children make the best 1, 2, 4, … of these trades, and all.

    Source: ours; single-change scores as in Puzzletron, there with an integer program behind them.
    """
    base = fitness(parent, 0)
    trades: list[tuple[float, int, int]] = []
    for group in budget.groups(space.layers):
        gains = {
            place: base - fitness(_changed(parent, place, -1), 0)
            for place in group
            if parent[place] > 0
        }
        losses = {
            place: fitness(_changed(parent, place, 1), 0) - base
            for place in group
            if parent[place] + 1 < len(space.removals[place])
        }
        denser = sorted(gains, key=lambda place: -gains[place])
        sparser = sorted(losses, key=lambda place: losses[place])
        for one, other in zip(denser, sparser, strict=False):
            if one != other and gains[one] > losses[other]:
                trades.append((losses[other] - gains[one], one, other))
    trades.sort()
    counts = sorted({min(2**power, len(trades)) for power in range(len(trades).bit_length() + 1)})
    found: dict[State, None] = {}
    for count in counts if trades else []:
        child = parent
        for _, one, other in trades[:count]:
            child = _changed(_changed(child, one, -1), other, 1)
        if child != parent and budget.allows(child):
            found[child] = None
    return list(found)


def _changed(state: State, place: int, by: int) -> State:
    return (*state[:place], state[place] + by, *state[place + 1 :])


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """Settings of the search, and one generation of it.

    Args:
        offspring: children per generation (lambda).
        stage_tokens: tokens that each stage judges on, rising.
        survivors: candidates left after each stage; 1 after the last.
        generations: in all.
        guided: generations at the start that try every single change first; see `guided_children`.
        keep_batches: generations that share their text; 1 draws it anew each time, as the paper.
        most_moves: see `mutate`.
        patience: generations without a new parent after which the search ends; 0 never.
    """

    offspring: PositiveInt
    stage_tokens: NonEmpty[PositiveInt]
    survivors: NonEmpty[PositiveInt]
    generations: NonNegativeInt
    guided: NonNegativeInt = 0
    keep_batches: PositiveInt = 1
    most_moves: PositiveInt = 4
    patience: NonNegativeInt = 0

    def __post_init__(self) -> None:
        falling = [self.offspring, *self.survivors]
        if (
            len(self.stage_tokens) != len(self.survivors)
            or not self.survivors
            or self.survivors[-1] != 1
            or falling != sorted(falling, reverse=True)
            or min(self.stage_tokens) < 2
            or self.stage_tokens != sorted(self.stage_tokens)
        ):
            raise ConfigError(
                "search: stage_tokens must rise from 2 or more, and survivors fall from offspring "
                f"to 1 with one entry per stage; found {self.stage_tokens}, {self.survivors}, "
                f"offspring {self.offspring}"
            )
        counts = (self.generations, self.guided, self.patience)
        if min(self.keep_batches, self.most_moves) < 1 or min(counts) < 0:
            raise ConfigError("search: keep_batches and most_moves start at 1, the others at 0")

    @property
    def steps(self) -> int:
        """Generations of both sorts."""
        return self.guided + self.generations

    def step(
        self,
        number: int,
        parent: State,
        space: Space,
        budget: Budget,
        fitness: Fitness,
        generator: Generator,
    ) -> tuple[State, list[dict[State, float]]]:
        """One generation.

        Args:
            number: of the generation; the first ones may be guided.
            parent: the state to start from.
            space: the levels.
            budget: what every candidate keeps.
            fitness: (state, stage) -> value; less is better.
            generator: of the moves.

        Returns:
            The next parent, and the fitness of every candidate of every stage that was held.

        Raises:
            NumericalError: if a fitness is not finite.
        """
        if number < self.guided:
            pool, first = guided_children(parent, space, budget, fitness), len(self.survivors) - 1
        else:
            first = 0
            pool = children(
                parent,
                space,
                budget,
                generator,
                count=self.offspring,
                most_moves=self.most_moves,
            )
        judged: list[dict[State, float]] = []
        for stage, survivors in list(enumerate(self.survivors))[first:]:
            last = stage == len(self.survivors) - 1
            # First in line, so that a tie keeps the parent.
            candidates = [parent, *pool] if last else pool
            scores = {one: fitness(one, stage) for one in candidates}
            if any(value != value or value == float("inf") for value in scores.values()):
                raise NumericalError(
                    f"the fitness of a candidate is not finite at stage {stage + 1}; try "
                    "budget.dtype=float32"
                )
            judged.append(scores)
            pool = sorted(scores, key=lambda one: scores[one])[:survivors]
        return pool[0], judged


def _draw(count: int, generator: Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))
