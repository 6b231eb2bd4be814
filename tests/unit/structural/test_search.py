"""The search: budgets, ends, optima it must find, and forward passes that start late."""

import copy
import itertools
import json

import pytest
import torch
from safetensors.torch import save_file
from toy_supernets import deep_model, store, windows

from effllm.modules.errors import ConfigError, NumericalError
from effllm.modules.evaluation.divergence import Teacher, record_teacher, window_divergence
from effllm.modules.evaluation.perplexity import window_nll
from effllm.modules.modeling.tiny import tiny_model
from effllm.modules.structural.costs import Costs, Units
from effllm.modules.structural.elimination import LocalPruner
from effllm.modules.structural.fitness import KlFitness, LevelModel
from effllm.modules.structural.resuming import ResumableModel
from effllm.modules.structural.search import (
    CostBudget,
    Evolution,
    Space,
    UnitBudget,
    children,
    guided_children,
    mutate,
)
from effllm.modules.structural.supernet import Supernet, level_tensors, registry_row
from effllm.modules.structural.units import SubLayer, key_matrix, sublayers


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


@pytest.fixture
def levels(tmp_path):
    model = deep_model()
    return LevelModel(model, store(copy.deepcopy(model), tmp_path)[0])


def judge(levels, *, resume, kind="full"):
    one = KlFitness(levels, kind=kind, top_k=16, resume=resume, batch_size=1)
    one.use_text([windows(2, 12), windows(3, 16)])
    return one


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
@torch.no_grad()
def test_a_pass_from_a_later_block_is_the_same_to_the_last_bit(family):
    model = tiny_model(family)
    runner, batch = ResumableModel(model), windows(2, 16)
    whole, entered = runner.run(batch)
    assert torch.equal(whole, model(batch).logits) and len(entered) == 2
    before = runner.evaluated
    later, again = runner.run(batch, start=1, inputs=entered)
    assert torch.equal(later, whole) and torch.equal(again[1], entered[1])
    assert runner.evaluated - before == batch.numel()  # one block of two
    assert torch.equal(model(batch).logits, whole)  # the patches are gone
    with pytest.raises(ValueError, match="what enters it"):
        runner.run(batch, start=1)


def test_dense_levels_everywhere_are_the_dense_model_to_the_last_bit(tmp_path):
    model = tiny_model("llama")
    before = window_nll(model, windows(), batch_size=2)
    levels = LevelModel(model, store(copy.deepcopy(model), tmp_path, reach=4)[0])
    dense = levels.space.state([0] * 4)
    fitness = judge(levels, resume=False)
    assert fitness(dense, 0) == 0
    other = levels.space.state([levels.supernet.centre[x.name] for x in levels.supernet.layers])
    assert fitness(other, 0) > 0
    for choice in (dense, None):
        levels.install(other)
        levels.install(choice)
        assert torch.equal(window_nll(model, windows(), batch_size=2), before)


def test_resumed_and_full_passes_give_the_same_fitness_with_less_work(levels):
    parent = levels.space.state(
        [levels.supernet.centre[one.name] for one in levels.supernet.layers]
    )
    generator = torch.Generator().manual_seed(0)
    pool = children(parent, levels.space, UnitBudget(), generator, count=12, most_moves=2)
    values, work = [], []
    for resume in (False, True):
        fitness = judge(levels, resume=resume)
        fitness.start_from(parent)
        values.append([fitness(one, stage) for stage in (0, 1) for one in [*pool, parent, parent]])
        work.append((fitness.evaluations, fitness.full_evaluations))
    assert values[0] == values[1]
    assert work[1][0] < work[0][0] < work[0][1] == work[1][1]


def test_full_passes_hold_no_hidden_states(levels, monkeypatch):
    held = []
    run = ResumableModel.run

    def watch(self, *args, **options):
        logits, entered = run(self, *args, **options)
        held.append(len(entered))
        return logits, entered

    monkeypatch.setattr(ResumableModel, "run", watch)
    parent = levels.space.state([levels.supernet.centre[x.name] for x in levels.supernet.layers])
    for resume in (False, True):
        held.clear()
        fitness = judge(levels, resume=resume)
        fitness.start_from(parent)
        fitness(parent, 1)
        assert any(held) == resume


def test_values_that_are_known_are_counted_as_such(levels):
    parent = levels.space.state([levels.supernet.centre[x.name] for x in levels.supernet.layers])
    fitness = judge(levels, resume=True)
    fitness.start_from(parent)
    first, again = fitness(parent, 1), fitness(parent, 1)
    done, full, remembered = fitness.effort
    assert first == again and done == full - remembered == remembered


def test_a_new_parent_keeps_its_hidden_states_and_values_stay_right(levels):
    resumed, full = judge(levels, resume=True), judge(levels, resume=False)
    start = levels.space.state([levels.supernet.centre[x.name] for x in levels.supernet.layers])
    searches = []
    for fitness in (full, resumed):
        fitness.use_text([windows(2, 12), windows(3, 16)])
        parent, trail = start, []
        for number in range(4):
            fitness.start_from(parent)
            parent, judged = evolution(offspring=4).step(
                number,
                parent,
                levels.space,
                UnitBudget(),
                fitness,
                torch.Generator().manual_seed(number),
            )
            trail.append((parent, judged))
        searches.append(trail)
    assert searches[0] == searches[1]


def test_a_candidate_starts_where_it_leaves_the_nearest_known_choice(levels):
    parent = levels.space.state([levels.supernet.centre[x.name] for x in levels.supernet.layers])
    depth, last = levels.supernet.layers[-1].block + 1, len(parent) - 1

    def changed(*places):
        return tuple(one + (place in places) for place, one in enumerate(parent))

    fitness = judge(levels, resume=True)

    def blocks_read(state):
        before = fitness.evaluations
        fitness(state, 1)
        return (fitness.evaluations - before) / windows(3, 16).numel()

    fitness.start_from(parent)
    assert blocks_read(parent) == blocks_read(changed(0)) == depth
    assert blocks_read(changed(0, last)) == 1  # goes on from the second, not from the parent
    fitness.start_from(changed(0, last - 1, last))  # a parent that has never been read
    assert blocks_read(changed(0, last - 1, last)) == 1


def test_levels_dense_and_gone_have_the_fitness_of_dropped_sublayers(tmp_path):
    model, rows = deep_model(), []
    for one in sublayers(model):
        weight, gram = key_matrix(model, one).read(), torch.eye(one.units * one.size).double()
        found = LocalPruner().eliminate(weight, gram, size=one.size, removals=[0, one.units])
        save_file(level_tensors(one, found), tmp_path / f"{one.name}.safetensors")
        rows.append(registry_row(one, [0, one.units], 0, [0.0, 1.0]))
    (tmp_path / "supernet.json").write_text(json.dumps({"iteration": 1, "sublayers": rows}))
    levels = LevelModel(model, Supernet.open(tmp_path, "here"))
    dropped, gone = deep_model(), (1, 4)
    for place in gone:
        matrix = key_matrix(dropped, levels.space.layers[place])
        matrix.write(torch.zeros_like(matrix.read()))
    text = windows(3, 16)
    teachers = record_teacher(deep_model(), text, kind="full", top_k=1)
    expected = float(window_divergence(dropped, teachers, text).mean())
    state = tuple(int(place in gone) for place in range(len(rows)))
    assert judge(levels, resume=True)(state, 1) == pytest.approx(expected, rel=1e-5)


def test_divergences_agree_where_they_must():
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (3 * torch.randn(7, 40, generator=generator) for _ in range(2))
    whole = Teacher.of(mine, "full", 1)
    p, q = (torch.log_softmax(one.double(), dim=-1) for one in (mine, theirs))
    torch.testing.assert_close(
        whole.divergence(theirs).double(), (p.exp() * (p - q)).sum(-1), rtol=1e-5, atol=1e-6
    )
    for kind in ("full", "topk_renorm", "topk_rest"):
        same = Teacher.of(mine, kind, 5).divergence(mine)
        torch.testing.assert_close(same, torch.zeros(7), rtol=0, atol=1e-6)
        all_of_them = Teacher.of(mine, kind, 40).divergence(theirs)
        torch.testing.assert_close(all_of_them, whole.divergence(theirs))
    bounds = [Teacher.of(mine, "topk_rest", k).divergence(theirs) for k in (1, 4, 16, 39)]
    for lower, upper in itertools.pairwise([*bounds, whole.divergence(theirs)]):
        assert bool((lower <= upper + 1e-5).all())
    with pytest.raises(ConfigError, match="one of full"):
        Teacher.of(mine, "ppl", 5)


def test_divergence_by_window_equals_that_of_the_logits():
    teacher, student = tiny_model("llama"), tiny_model("llama", seed=1)
    ids = windows(2, 10)
    found = window_divergence(student, record_teacher(teacher, ids, kind="full", top_k=1), ids)
    with torch.no_grad():
        p, q = (torch.log_softmax(one(ids).logits[:, :-1], -1) for one in (teacher, student))
    expected = (p.exp() * (p - q)).sum(-1).mean(-1)
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cost", ["parameters", "memory", "latency"])
def test_cost_tables_fall_with_removed_units_and_are_not_measured_twice(levels, cost):
    centre = levels.space.state([levels.supernet.centre[x.name] for x in levels.supernet.layers])
    budget = Costs(cost=cost, context=16).build(levels, centre)
    assert budget.allows(centre) and budget.limit == pytest.approx(budget.total(centre))
    if cost != "latency":  # measured times are noisy at this size
        for row in budget.costs:
            assert row == sorted(row, reverse=True) and row[0] > row[-1]
    assert Costs(cost=cost).build(levels, centre, budget.costs).costs == budget.costs
    assert isinstance(Units().build(levels, centre), UnitBudget)


def test_the_parameter_table_counts_what_export_counts(levels):
    from effllm.modules.structural.compact import compact_model
    from effllm.modules.structural.sizes import count_parameters

    model, layers = levels.model, levels.supernet.layers
    states = [tuple(0 for _ in layers), tuple(len(one) - 2 for one in levels.space.removals)]
    budget = Costs(cost="parameters").build(levels, states[0])
    counted = [count_parameters(compact_model(model, layers, levels.kept(s)))[1] for s in states]
    tabled = [budget.total(state) for state in states]
    assert counted[0] - counted[1] == tabled[0] - tabled[1]
