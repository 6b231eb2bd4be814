"""Searches for orders of channels, against brute force and published figures."""

import itertools

import numpy as np
import pytest
import torch

from effllm.kernels.exchange import (
    exchange_gains,
    exchange_gains_reference,
    rivals,
    rivals_reference,
)
from effllm.modules.permutation.orders import (
    canonical,
    inverse,
    ordered_mask,
    require_order,
)
from effllm.modules.permutation.problem import Part, Problem
from effllm.modules.permutation.search import (
    BestOfRandom,
    Deal,
    LossSwaps,
    PairSearch,
    Perturbed,
    RelativeImportance,
    Swaps,
    Unchanged,
    removal_costs,
    removal_prices,
    swap_gains,
)
from effllm.modules.sparsity.masks import row_mask
from effllm.modules.sparsity.patterns import Grouped

TWO_OF_FOUR = Grouped(keep=2, group=4)
PATTERNS = [Grouped(keep=1, group=4), TWO_OF_FOUR, Grouped(keep=3, group=4),
            Grouped(keep=4, group=8)]  # fmt: skip


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem_of(rows=24, columns=32, pattern=TWO_OF_FOUR, seed=0, scaled=True) -> Problem:
    """A layer with channels of unequal size and correlated inputs."""
    generator = draw(seed)
    weight = torch.randn(rows, columns, generator=generator)
    if scaled:
        weight *= torch.randn(columns, generator=generator).exp()
    tokens = torch.randn(4 * columns, columns, generator=generator)
    tokens = tokens @ torch.randn(columns, columns, generator=generator)
    gram = tokens.T @ tokens / len(tokens)
    return Problem([Part(weight, weight.abs() * gram.diagonal().sqrt(), gram)], pattern)


def apex_matrix() -> Problem:
    random = np.random.RandomState(1)
    score = torch.from_numpy(random.rand(128, 64)).float()
    return Problem([Part(score, score, torch.eye(64))], TWO_OF_FOUR)


def test_orders_and_their_inverses():
    order = torch.randperm(12, generator=draw())
    assert torch.equal(order[inverse(order)], torch.arange(12))
    weight, inputs = torch.randn(5, 12), torch.randn(3, 12)
    assert torch.allclose(inputs[:, order] @ weight[:, order].T, inputs @ weight.T, atol=1e-5)
    with pytest.raises(ValueError, match="each of 12 channels once"):
        require_order(order.clamp(min=1), 12, "site")


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_a_mask_depends_on_the_partition_alone(pattern):
    score = torch.randint(0, 3, (7, 32), generator=draw()).float()  # many ties
    order = torch.randperm(32, generator=draw())
    shuffled = order.reshape(-1, pattern.group)
    shuffled = shuffled[torch.randperm(len(shuffled), generator=draw(1))].flip(1).reshape(-1)
    assert torch.equal(canonical(order, pattern.group), canonical(shuffled, pattern.group))
    mask = ordered_mask(score, canonical(order, pattern.group), pattern)
    counts = mask[:, order].reshape(7, -1, pattern.group).sum(dim=2)
    assert (counts == pattern.keep).all()


def test_the_compiled_prices_are_those_of_the_definition():
    for rows, channels, slots in ((1, 1, 1), (5, 19, 3), (33, 64, 64), (3, 8, 0)):
        generator = draw(rows)
        score, value = torch.rand(2, rows, channels, generator=generator)
        threshold, held = torch.rand(2, rows, slots, generator=generator)
        assert torch.allclose(
            exchange_gains(score, threshold, value, held),
            exchange_gains_reference(score, threshold, value, held),
            atol=1e-5,
        )


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_the_compiled_rivals_are_those_of_the_definition(pattern):
    score = torch.randint(0, 5, (9, 32), generator=draw()).float()  # many ties
    for found, expected in zip(
        rivals(score, pattern.keep, pattern.group),
        rivals_reference(score, pattern.keep, pattern.group),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_the_price_of_a_swap_is_what_it_changes(pattern):
    problem = problem_of(pattern=pattern)
    order = torch.randperm(32, generator=draw(3))
    score = problem.score[:, order].contiguous()
    threshold, _ = rivals(score, pattern.keep, pattern.group)
    gains = swap_gains(exchange_gains(score, threshold, score, threshold))
    before = problem.retained(order)
    for one, two in itertools.combinations(range(0, 32, 3), 2):
        if one // pattern.group != two // pattern.group:
            changed = order.clone()
            changed[[one, two]] = order[[two, one]]
            assert problem.retained(changed) - before == pytest.approx(
                float(gains[one, two]), abs=1e-3 * before / 32
            )


def test_the_cost_of_a_removal_is_what_it_adds():
    problem = problem_of(rows=4, columns=8)
    part = problem.parts[0]
    (removed,) = problem.removed(torch.arange(8))
    costs = removal_costs(part, removed)
    for row, channel in itertools.product(range(4), range(8)):
        kept, gone = removed.clone(), removed.clone()
        kept[row, channel], gone[row, channel] = 0.0, -part.weight[row, channel]
        added = [float((one @ part.gram * one).sum()) for one in (kept, gone)]
        assert added[1] - added[0] == pytest.approx(float(costs[row, channel]), rel=1e-3, abs=1e-3)


def test_with_independent_inputs_prices_of_the_error_are_exact():
    problem = problem_of()
    part = problem.parts[0]
    part = Part(part.weight, part.score, torch.diag(part.gram.diagonal()))
    problem = Problem([part], TWO_OF_FOUR)
    order = torch.randperm(32, generator=draw(4))
    gains = swap_gains(removal_prices(problem, order))
    output = float((part.weight @ part.gram * part.weight).sum())
    for one, two in ((0, 9), (3, 31), (14, 20)):
        changed = order.clone()
        changed[[one, two]] = order[[two, one]]
        fall = (problem.error(order) - problem.error(changed)) * output
        assert fall == pytest.approx(float(gains[one, two]), rel=1e-3, abs=1e-3 * output)


def test_exhaustive_search_of_two_groups():
    problem = problem_of(rows=6, columns=8)
    best = max(
        problem.retained(torch.tensor(order))
        for order in itertools.permutations(range(8))
        if order[0] == 0 and list(order[:4]) == sorted(order[:4]) and
        list(order[4:]) == sorted(order[4:])
    )  # fmt: skip
    found = PairSearch(sweeps=5).improve(problem, torch.arange(8), draw())
    assert problem.retained(found) == pytest.approx(best)


def test_the_published_matrix_of_apex():
    problem = apex_matrix()
    identity = torch.arange(64)
    rows = float((problem.score * row_mask(problem.score, ratio=0.5)).sum(dtype=torch.float64))
    assert float(problem.score.sum(dtype=torch.float64)) == pytest.approx(4083.169, abs=5e-4)
    assert rows == pytest.approx(3042.332, abs=5e-4)
    assert problem.retained(identity) == pytest.approx(2852.377, abs=5e-4)
    pairs = PairSearch(sweeps=50).improve(problem, identity, draw())
    assert problem.retained(pairs) >= 2919.7
    pushed = Perturbed(search=Swaps(sweeps=100), rounds=50, swaps=4)
    swaps = pushed.improve(problem, Deal().find(problem, draw()), draw())
    assert problem.retained(swaps) >= 2921.95  # apex with windows of 12
    assert problem.efficacy(swaps) == pytest.approx(
        (problem.retained(swaps) - 2852.377) / (3042.332 - 2852.377), abs=1e-4
    )


def test_searches_rank_as_published_on_channels_of_unequal_size():
    """Means over 20 matrices; random < deal < RIA < RIA repeated <= swaps."""
    searches = {
        "random": BestOfRandom(samples=20),
        "deal": Deal(),
        "ria": RelativeImportance(rounds=1),
        "repeated": RelativeImportance(rounds=20),
    }
    means = dict.fromkeys([*searches, "swaps"], 0.0)
    for seed in range(20):
        problem = problem_of(rows=48, seed=seed)
        for name, search in searches.items():
            found = search.find(problem, draw(seed))
            means[name] += problem.efficacy(found) / 20
        swaps = Swaps(sweeps=50).improve(problem, found, draw())
        means["swaps"] += problem.efficacy(swaps) / 20
    assert means["random"] < means["deal"] < means["ria"] < means["repeated"] <= means["swaps"]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_loss_swaps_lower_the_error_below_the_best_score(pattern):
    for seed in range(3):
        problem = problem_of(rows=48, pattern=pattern, seed=seed)
        identity = Unchanged().find(problem, draw())
        swaps = Swaps(sweeps=50).improve(problem, Deal().find(problem, draw()), draw())
        loss_swaps = LossSwaps(sweeps=50).improve(problem, swaps, draw())
        errors = [problem.error(order) for order in (loss_swaps, swaps, identity)]
        assert errors == sorted(errors)
        assert errors[0] < errors[2]
