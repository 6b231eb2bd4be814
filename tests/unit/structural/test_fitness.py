"""The fitness of a choice of levels: late starts, remembered values, divergences, cost tables."""

import copy
import itertools
import json

import pytest
import torch
from safetensors.torch import save_file
from toy_supernets import deep_model, store, windows

from effllm.modules.errors import ConfigError
from effllm.modules.evaluation.divergence import Teacher, record_teacher, window_divergence
from effllm.modules.evaluation.perplexity import window_nll
from effllm.modules.modeling.tiny import tiny_model
from effllm.modules.structural.budgets import Costs, Units
from effllm.modules.structural.elimination import LocalPruner
from effllm.modules.structural.fitness import KlFitness, LevelModel
from effllm.modules.structural.resuming import ResumableModel
from effllm.modules.structural.search import (
    Evolution,
    UnitBudget,
    children,
)
from effllm.modules.structural.supernet import Supernet, level_tensors, registry_row
from effllm.modules.structural.units import key_matrix, sublayers


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
    search = Evolution(offspring=4, stage_tokens=[4, 8], survivors=[3, 1], generations=10)
    searches = []
    for fitness in (full, resumed):
        fitness.use_text([windows(2, 12), windows(3, 16)])
        parent, trail = start, []
        for number in range(4):
            fitness.start_from(parent)
            parent, judged = search.step(
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
    for kind in ("topk_renorm", "topk_rest"):
        values, ids = mine.topk(40)  # as a choice, which `of` would spare
        all_of_them = Teacher(kind, ids, values - mine.logsumexp(dim=-1, keepdim=True))
        torch.testing.assert_close(
            all_of_them.divergence(theirs), whole.divergence(theirs), rtol=1e-4, atol=1e-5
        )
        assert Teacher.of(mine, kind, 40).ids is None
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
