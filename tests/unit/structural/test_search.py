"""The search: budgets, ends, and optima it must find."""

import itertools

import pytest
import torch

from effllm.modules.errors import ConfigError, NumericalError
from effllm.modules.structural.search import (
    CostBudget,
    Evolution,
    Space,
    UnitBudget,
    children,
    guided_children,
    mutate,
)
from effllm.modules.structural.units import SubLayer


def space(blocks=4, levels=5, step=2):
    layers = [
        SubLayer(block, kind, "key", 12, 1)
        for block in range(blocks)
        for kind in ("attention", "ffn")
    ]
    return Space(layers, [[step * level for level in range(levels)]] * len(layers))


def evolution(**options):
    usual = {"offspring": 8, "stage_tokens": [4, 8], "survivors": [3, 1], "generations": 10}
    return Evolution(**{**usual, **options})


def totals(one, state):
    removed = one.removed(state)
    return [
        sum(r for r, layer in zip(removed, one.layers, strict=True) if layer.kind == kind)
        for kind in ("attention", "ffn")
    ]


def test_ten_thousand_children_keep_both_budgets():
    one, generator = space(), torch.Generator().manual_seed(0)
    parent = (2,) * 8
    wanted = totals(one, parent)
    for _ in range(10_000):
        child = mutate(parent, one, UnitBudget(), generator, 4)
        if child is None:  # moves that undid each other
            continue
        assert child != parent and totals(one, child) == wanted
        assert all(0 <= level < 5 for level in child)
        parent = child


def test_small_spaces_end():
    generator = torch.Generator().manual_seed(0)
    tiny = space(blocks=2, levels=3)
    found = children((1, 1, 1, 1), tiny, UnitBudget(), generator, count=128, most_moves=4)
    assert 0 < len(found) < 128 and len(set(found)) == len(found)
    stuck = space(blocks=1)
    assert children((2, 2), stuck, UnitBudget(), generator, count=8, most_moves=4) == []
    winner, judged = evolution().step(
        0, (2, 2), stuck, UnitBudget(), lambda state, stage: 1.0, generator
    )
    assert winner == (2, 2) and judged[-1] == {(2, 2): 1.0}


def run(one, parent, fitness, *, seed, budget=None, **options):
    search = evolution(**options)
    for number in range(search.steps):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        parent, _ = search.step(number, parent, one, budget or UnitBudget(), fitness, generator)
    return parent


@pytest.mark.parametrize("guided", [0, 1])
def test_it_finds_the_optimum_that_enumeration_finds(guided):
    """3 blocks, 3 levels, coupled costs; at least 19 of 20 searches."""
    one = space(blocks=3, levels=3)
    table = torch.rand(6, 3, generator=torch.Generator().manual_seed(3)).cumsum(dim=1)
    pairs = 0.2 * torch.rand(6, 6, generator=torch.Generator().manual_seed(4))

    def fitness(state, stage):
        cost = sum(float(table[p, level]) for p, level in enumerate(state))
        return cost + sum(
            float(pairs[p, q]) * state[p] * state[q] for p, q in itertools.combinations(range(6), 2)
        )

    start = (1,) * 6
    allowed = [
        state
        for state in itertools.product(range(3), repeat=6)
        if totals(one, state) == totals(one, start)
    ]
    best = min(allowed, key=lambda state: fitness(state, 0))
    hits = sum(
        run(one, start, fitness, seed=s, generations=20, guided=guided) == best for s in range(20)
    )
    assert best != start and hits >= 19


def test_on_separable_convex_costs_it_reaches_the_greedy_optimum():
    one, scales = space(blocks=4), torch.linspace(0.5, 4, 8).tolist()

    def fitness(state, stage):
        return sum(scale * level**2 for scale, level in zip(scales, state, strict=True))

    start = (2,) * 8
    best = sum(
        min(
            sum(scale * level**2 for scale, level in zip(scales[kind::2], levels, strict=True))
            for levels in itertools.product(range(5), repeat=4)
            if sum(levels) == 8
        )
        for kind in (0, 1)
    )
    found = run(one, start, fitness, seed=0, generations=30, offspring=16)
    assert fitness(found, 0) == pytest.approx(best)


def test_guided_children_make_the_best_trades():
    one = space(blocks=3, levels=3)
    weights = [5.0, 1.0, 1.0, 1.0, 0.1, 1.0]  # attention of block 0 hurts most, of block 2 least

    def fitness(state, stage):
        assert stage == 0
        return sum(weight * level for weight, level in zip(weights, state, strict=True))

    assert guided_children((1,) * 6, one, UnitBudget(), fitness) == [(0, 1, 1, 1, 2, 1)]
    flat = guided_children((1,) * 6, one, UnitBudget(), lambda state, stage: 0.0)
    assert flat == []


def test_with_fixed_text_the_best_never_gets_worse():
    one = space()
    weights = torch.rand(8, generator=torch.Generator().manual_seed(5)).tolist()

    def fitness(state, stage):
        return sum(weight * level**1.5 for weight, level in zip(weights, state, strict=True))

    parent, last = (2,) * 8, float("inf")
    for number in range(15):
        parent, judged = evolution().step(
            number, parent, one, UnitBudget(), fitness, torch.Generator().manual_seed(number)
        )
        assert judged[-1][parent] <= last
        last = judged[-1][parent]


def test_guided_children_keep_a_cost_budget():
    one = space()
    costs = [[10.0 - level * (1 + place % 2) for level in range(5)] for place in range(8)]
    limit = sum(row[2] for row in costs)
    weights = [2.0**place for place in range(8)]

    def fitness(state, stage):
        return sum(w * level for w, level in zip(weights, state, strict=True))

    narrow = CostBudget(costs, limit, band=0.01)
    wide = CostBudget(costs, 2 * limit, band=0.99)
    every = guided_children((2,) * 8, one, wide, fitness)
    kept = guided_children((2,) * 8, one, narrow, fitness)
    assert kept == [state for state in every if narrow.allows(state)] != every


def test_two_levels_are_dropping_of_sublayers():
    """Levels dense and gone: children exchange one whole sub-layer for another, as in EvoPress."""
    layers = [SubLayer(block, "attention", "key", 4, 1) for block in range(5)]
    one = Space(layers, [[0, 4]] * 5)
    generator = torch.Generator().manual_seed(0)
    found = children((0, 0, 0, 1, 1), one, UnitBudget(), generator, count=6, most_moves=1)
    assert {tuple(sorted(i for i, gone in enumerate(s) if gone)) for s in found} == {
        (i, j) for i in (0, 1, 2) for j in (3, 4)
    }


def test_costs_stay_within_their_band_and_kinds_may_trade():
    one = space()
    costs = [[10.0 - level * (1 + place % 2) for level in range(5)] for place in range(8)]
    limit = sum(row[2] for row in costs)
    budget = CostBudget(costs, limit, band=0.1)
    found = children(
        (2,) * 8, one, budget, torch.Generator().manual_seed(0), count=30, most_moves=4
    )
    assert len(found) == 30
    assert all(0.9 * limit <= budget.total(state) <= limit for state in found)
    assert any(totals(one, state) != totals(one, (2,) * 8) for state in found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"survivors": [3, 2]},
        {"survivors": [9, 1]},
        {"stage_tokens": [8]},
        {"stage_tokens": [8, 4]},
        {"stage_tokens": [1, 8]},
        {"keep_batches": 0},
        {"generations": -1},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="search:"):
        evolution(**wrong)


def test_a_fitness_that_is_not_finite_is_refused():
    with pytest.raises(NumericalError, match="not finite at stage 1"):
        evolution().step(
            0, (2,) * 8, space(), UnitBudget(), lambda s, stage: float("nan"), torch.Generator()
        )
