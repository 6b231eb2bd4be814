"""Searches for an order of channels: the rivals of learning, and where it starts from.

A `Search` finds an order of a problem from nothing, an `Improvement` goes on from one and is never
worse in its own objective. Random, deal, RIA and swaps maximise the retained score of the pruner;
loss-aware swaps minimise the output error of the layers. All moves of a channel into another slot
are priced at once (`exchange_gains`), for any N:M.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from effllm.kernels.exchange import exchange_gains, rivals
from effllm.modules.permutation.orders import canonical
from effllm.modules.permutation.problem import Part, Problem
from effllm.modules.ranges import PositiveInt

_GAIN = 1e-6  # of the whole: smaller gains are rounding


class Search(Protocol):
    """Finds an order from nothing."""

    def find(self, problem: Problem, generator: torch.Generator) -> Tensor:
        """(n,) int64 order, canonical."""


class Improvement(Protocol):
    """Makes a better order out of one."""

    def value(self, problem: Problem, order: Tensor) -> float:
        """What is raised."""

    def improve(self, problem: Problem, order: Tensor, generator: torch.Generator) -> Tensor:
        """(n,) int64 order, canonical, from an order; not worse in `value`."""


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """The channels as they are: plain N:M pruning."""

    def find(self, problem: Problem, generator: torch.Generator) -> Tensor:
        """Counts up."""
        del generator
        return torch.arange(problem.columns)


@dataclass(frozen=True, kw_only=True)
class BestOfRandom:
    """The random order that retains most.

    Args:
        samples: orders that are tried.
    """

    samples: PositiveInt

    def find(self, problem: Problem, generator: torch.Generator) -> Tensor:
        """Never worse than the identity, which is among the tried."""
        tried = [torch.arange(problem.columns)]
        tried += [torch.randperm(problem.columns, generator=generator) for _ in range(self.samples)]
        return canonical(max(tried, key=problem.retained), problem.pattern.group)


@dataclass(frozen=True, kw_only=True)
class Deal:
    """Channels sorted by their summed score and dealt to the groups, to and fro.

    Source: RIA (ICLR 2024), `lib/prune.py`: heuristic allocation.
    """

    def find(self, problem: Problem, generator: torch.Generator) -> Tensor:
        """Deterministic."""
        del generator
        group = problem.pattern.group
        chunks = problem.score.sum(dim=0).argsort(stable=True).reshape(group, -1)
        chunks[1::2] = chunks[1::2].flip(1)
        return canonical(chunks.T.reshape(-1), group)


@dataclass(frozen=True, kw_only=True)
class RelativeImportance:
    """RIA's channel permutation: the deal, then each slot of all groups assigned anew.

    Args:
        rounds: passes over the slots at most; RIA does one. Stops when a pass gains nothing.

    Source: RIA (ICLR 2024), `lib/prune.py`: linear sum assignment.
    Deviates: gains are priced by `exchange_gains`, which equals its sorted groups exactly.
    """

    rounds: PositiveInt

    def find(self, problem: Problem, generator: torch.Generator) -> Tensor:
        """Never below the deal in retained score."""
        order = Deal().find(problem, generator)
        group = problem.pattern.group
        best = problem.retained(order)
        for _ in range(self.rounds):
            for slot in range(group):
                score = problem.score[:, order]
                threshold = rivals(score, problem.pattern.keep, problem.pattern.group)[0][
                    :, slot::group
                ].contiguous()
                movable = order[slot::group]
                channels = problem.score[:, movable]
                gains = exchange_gains(channels, threshold, channels, threshold)
                rows, places = linear_sum_assignment(gains.numpy(), maximize=True)
                order[torch.from_numpy(places) * group + slot] = movable[torch.from_numpy(rows)]
            found = problem.retained(order)
            if found <= best * (1 + _GAIN):
                break
            best = found
        return canonical(order, group)


@dataclass(frozen=True, kw_only=True)
class Swaps:
    """Exact local search: the best swaps of two channels of two groups, until none gains.

    The gain of swapping the channels of slots a and b is V[b, a] - V[a, a] + V[a, b] - V[b, b]
    with V the prices of all moves; gains of swaps between different pairs of groups add up.

    Args:
        sweeps: over all pairs of groups at most.

    Source: prices after RIA and Pool & Yu; the search is ours.
    """

    sweeps: PositiveInt

    def value(self, problem: Problem, order: Tensor) -> float:
        """The retained score."""
        return problem.retained(order)

    def improve(self, problem: Problem, order: Tensor, generator: torch.Generator) -> Tensor:
        """The local optimum that an order leads to; never below it in retained score."""
        del generator
        order, group = order.clone(), problem.pattern.group
        least = _GAIN * problem.retained(order) / problem.columns
        prices = torch.zeros(problem.columns, problem.columns)  # (channel, slot)
        touched = torch.arange(problem.columns)
        for _ in range(self.sweeps):
            threshold = rivals(
                problem.score[:, order[touched]], problem.pattern.keep, problem.pattern.group
            )[0].contiguous()
            prices[:, touched] = exchange_gains(problem.score, threshold, problem.score, threshold)
            swaps = _disjoint(swap_gains(prices[order]), group, least)
            if not len(swaps):
                break
            order[swaps.flatten()] = order[swaps.flip(1).flatten()]
            touched = _slots(swaps, group).flatten()
        return canonical(order, group)


@dataclass(frozen=True, kw_only=True)
class LossSwaps:
    """Swaps that lower the layer's output error tr(E H E^T) instead of raising the score.

    Every move is priced by what a weight costs when it is removed alone, -2 W (E H)_others + W^2
    H_cc; swaps that look best are accepted together if the error really falls, else half of them.

    Args:
        sweeps: over all pairs of groups at most.

    Source: ours; shared specification, section 4.5.
    """

    sweeps: PositiveInt

    def value(self, problem: Problem, order: Tensor) -> float:
        """Minus the error."""
        return -problem.error(order)

    def improve(self, problem: Problem, order: Tensor, generator: torch.Generator) -> Tensor:
        """The local optimum that an order leads to; never above it in error."""
        del generator
        order, group = order.clone(), problem.pattern.group
        error = problem.error(order)
        for _ in range(self.sweeps):
            prices = removal_prices(problem, order)
            swaps = _disjoint(swap_gains(prices), group, 0.0)
            while len(swaps):
                changed = order.clone()
                changed[swaps.flatten()] = order[swaps.flip(1).flatten()]
                found = problem.error(changed)
                if found < error * (1 - _GAIN):
                    break
                swaps = swaps[: len(swaps) // 2]
            if not len(swaps):
                break
            order, error = changed, found
        return canonical(order, group)


@dataclass(frozen=True, kw_only=True)
class Perturbed:
    """A local search that is pushed out of its optimum by random swaps, again and again.

    Args:
        search: the local search.
        rounds: pushes; the best order is kept after each.
        swaps: random swaps of a push.

    Source: after the bounded regressions of Pool & Yu (NeurIPS 2021).
    """

    search: Swaps | LossSwaps
    rounds: PositiveInt
    swaps: PositiveInt

    def value(self, problem: Problem, order: Tensor) -> float:
        """That of the local search."""
        return self.search.value(problem, order)

    def improve(self, problem: Problem, order: Tensor, generator: torch.Generator) -> Tensor:
        """Never worse than what the local search makes of the order."""
        best = self.search.improve(problem, order, generator)
        value = self.search.value(problem, best)
        for _ in range(self.rounds):
            places = torch.randperm(problem.columns, generator=generator)[: 2 * self.swaps]
            pushed = best.clone()
            pushed[places] = best[places.flip(0)]
            found = self.search.improve(problem, pushed, generator)
            reached = self.search.value(problem, found)
            if reached > value:
                best, value = found, reached
        return best


def removal_prices(problem: Problem, order: Tensor) -> Tensor:
    """First-order fall of the error when a channel moves into a slot.

    Args:
        problem: what the order is for.
        order: (n,) present order.

    Returns:
        (n, n) by the channel's present position and the slot.
    """
    total = torch.zeros(problem.columns, problem.columns)
    for part, removed in zip(problem.parts, problem.removed(order), strict=True):
        total += exchange_prices(part, removal_costs(part, removed), order, problem)
    return total


def removal_costs(part: Part, removed: Tensor) -> Tensor:
    """What each weight adds to the error when it is removed, all others as they are.

    Args:
        part: rows, with their Gram matrix.
        removed: (R, n) minus the removed weights, E.

    Returns:
        (R, n).
    """
    energy = part.gram.diagonal()
    others = removed @ part.gram - removed * energy
    return part.weight * (part.weight * energy - 2 * others)


def exchange_prices(part: Part, worth: Tensor, order: Tensor, problem: Problem) -> Tensor:
    """(n, n) gain in kept worth when the channel at a position moves into a slot."""
    score, worth = part.score[:, order].contiguous(), worth[:, order].contiguous()
    threshold, rival = rivals(score, problem.pattern.keep, problem.pattern.group)
    return exchange_gains(score, threshold, worth, worth.gather(1, rival))


def swap_gains(prices: Tensor) -> Tensor:
    """(n, n) gain of swapping the channels of two slots, from (n, n) prices by position."""
    own = prices.diagonal()
    return prices + prices.T - own[:, None] - own[None, :]


def _disjoint(gains: Tensor, group: int, least: float) -> Tensor:
    """(k, 2) slots to swap, best first, no group twice, each gaining more than `least`."""
    groups = len(gains) // group
    tiles = gains.reshape(groups, group, groups, group).permute(0, 2, 1, 3)
    best, place = tiles.reshape(groups, groups, -1).max(dim=2)
    first, second = torch.triu_indices(groups, groups, offset=1)
    value = best[first, second]
    promising = (value > least).nonzero().flatten()
    ranked = promising[value[promising].argsort(descending=True, stable=True)]
    free = [True] * groups
    chosen: list[tuple[int, int]] = []
    for one, two in zip(first[ranked].tolist(), second[ranked].tolist(), strict=True):
        if free[one] and free[two]:
            free[one] = free[two] = False
            inner = int(place[one, two])
            chosen.append((one * group + inner // group, two * group + inner % group))
    return torch.tensor(chosen, dtype=torch.int64).reshape(-1, 2)


def _slots(swaps: Tensor, group: int) -> Tensor:
    """All slots of the groups that (k, 2) swaps touch."""
    return (swaps // group).flatten()[:, None] * group + torch.arange(group)


@dataclass(frozen=True, kw_only=True)
class PairSearch:
    """Every partition of each two groups into two, the best first: apex's search with window 8.

    Args:
        sweeps: over all pairs of groups at most.

    Source: NVIDIA apex, contrib/sparsity/permutation_search_kernels; groups of any length here.
    """

    sweeps: PositiveInt

    def value(self, problem: Problem, order: Tensor) -> float:
        """The retained score."""
        return problem.retained(order)

    def improve(self, problem: Problem, order: Tensor, generator: torch.Generator) -> Tensor:
        """The local optimum that an order leads to; never below it in retained score."""
        del generator
        order, group = order.clone(), problem.pattern.group
        splits = torch.tensor(_splits(group))  # (partitions, 2 group)
        pairs = torch.tensor(list(combinations(range(problem.columns // group), 2)))
        for _ in range(self.sweeps):
            slots = order.reshape(-1, group)[pairs].reshape(len(pairs), 2 * group)
            value = torch.stack(
                [_retained_of(problem, slots[:, split]) for split in splits], dim=1
            )  # (pairs, partitions); the first partition is the present one
            gain, place = (value - value[:, :1]).max(dim=1)
            free = [True] * (problem.columns // group)
            moved = False
            for number in gain.argsort(descending=True, stable=True).tolist():
                one, two = pairs[number].tolist()
                if gain[number] <= _GAIN * value[number, 0] or not (free[one] and free[two]):
                    continue
                free[one] = free[two] = False
                new = slots[number, splits[place[number]]].reshape(2, group)
                order.reshape(-1, group)[[one, two]] = new
                moved = True
            if not moved:
                break
        return canonical(order, group)


def _splits(group: int) -> Sequence[tuple[int, ...]]:
    """All ways to part two groups' channels into two; the present one first."""
    everything = range(2 * group)
    return [
        (0, *rest, *(one for one in everything if one not in {0, *rest}))
        for rest in combinations(range(1, 2 * group), group - 1)
    ]


def _retained_of(problem: Problem, slots: Tensor) -> Tensor:
    """(P,) score retained by the groups of (P, k * group) channels, float64."""
    rows = problem.score.T[slots].reshape(len(slots), -1, problem.pattern.group, len(problem.score))
    kept = rows.topk(problem.pattern.keep, dim=2).values
    return kept.sum(dim=(1, 2, 3), dtype=torch.float64)
