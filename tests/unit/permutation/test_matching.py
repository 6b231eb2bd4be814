"""From costs to permutations, and gradients through them."""

import itertools

import ot
import pytest
import torch

from effllm.kernels.exchange import rivals
from effllm.modules.errors import NumericalError
from effllm.modules.permutation.gradients import prune_hard, prune_soft, refine
from effllm.modules.permutation.matching import assign, normalised, sinkhorn
from effllm.modules.permutation.orders import ordered_mask
from effllm.modules.sparsity.patterns import Grouped

TWO_OF_FOUR = Grouped(keep=2, group=4)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def costs_of(blocks=3, size=6, seed=0) -> torch.Tensor:
    return normalised(torch.randn(blocks, size, size, generator=draw(seed), dtype=torch.float64))


def test_plans_are_doubly_stochastic_and_those_of_pot():
    costs = costs_of()
    plan = sinkhorn(costs, 0.5, iterations=2000)
    assert plan.sum(dim=2) == pytest.approx(torch.ones(3, 6), abs=0.02)
    assert plan.sum(dim=1) == pytest.approx(torch.ones(3, 6), abs=1e-6)
    for block, found in zip(costs, plan, strict=True):
        even = torch.full((6,), 1 / 6, dtype=torch.float64)
        oracle = 6 * ot.sinkhorn(even, even, block / 6 * 6, 0.5, method="sinkhorn_log")
        assert torch.allclose(found, oracle, atol=0.02)


def test_shifts_of_rows_and_columns_change_nothing():
    costs = torch.randn(2, 8, 8, generator=draw())
    shifted = costs + torch.randn(2, 8, 1, generator=draw(1)) + torch.randn(2, 1, 8)
    assert torch.allclose(normalised(costs), normalised(shifted), atol=1e-5)
    assert torch.equal(assign(costs), assign(normalised(costs)))


def test_a_cold_plan_is_the_assignment():
    costs = costs_of(size=5)
    plan = sinkhorn(costs, 0.01, iterations=20_000)
    assert torch.equal(plan.argmax(dim=1), assign(costs))


def test_assignments_are_the_cheapest_of_all():
    costs = costs_of(blocks=4, size=5, seed=3)
    for block, found in zip(costs, assign(costs), strict=True):
        cheapest = min(
            float(block[list(channels), range(5)].sum())
            for channels in itertools.permutations(range(5))
        )
        assert float(block[found, torch.arange(5)].sum()) == pytest.approx(cheapest)
    with pytest.raises(NumericalError, match="not finite"):
        assign(costs * float("nan"))


def test_the_implicit_gradient_is_that_of_a_long_unrolled_solution(monkeypatch):
    costs = costs_of(blocks=2).requires_grad_()
    weights = torch.randn(2, 6, 6, generator=draw(5), dtype=torch.float64)

    def loss(matrix: torch.Tensor) -> torch.Tensor:
        scaled, rows = -matrix / 0.7, torch.zeros_like(matrix[:, :, :1])
        for _ in range(500):  # to convergence, unrolled
            columns = -(scaled + rows).logsumexp(dim=1, keepdim=True)
            rows = -(scaled + columns).logsumexp(dim=2, keepdim=True)
        columns = -(scaled + rows).logsumexp(dim=1, keepdim=True)
        return ((scaled + rows + columns).exp() * weights).sum()

    (expected,) = torch.autograd.grad(loss(costs), costs)
    # Iterations usually end with marginals within 1 %; the formula is that of the exact solution.
    monkeypatch.setattr("effllm.modules.permutation.matching._CLOSE", 1e-13)
    plan = sinkhorn(costs, 0.7, iterations=2000)
    (found,) = torch.autograd.grad((plan * weights).sum(), costs)
    assert torch.allclose(found, expected, atol=1e-8)


def layer(rows=10, columns=16, size=8, seed=0):
    generator = draw(seed)
    weight, score = torch.randn(2, rows, columns, generator=generator)
    first = torch.randperm(columns, generator=generator)
    inner = torch.stack([torch.randperm(size, generator=generator) for _ in range(columns // size)])
    return weight, score.abs(), first, inner


def test_a_hard_order_is_a_masked_weight_and_a_soft_one_is_not():
    weight, score, first, inner = layer()
    masked = weight * ordered_mask(score, refine(first, inner), TWO_OF_FOUR)
    hard = torch.zeros(2, 8, 8).scatter_(1, inner[:, None, :], 1.0)
    assert torch.equal(prune_soft(weight, score, hard, first, TWO_OF_FOUR), masked)
    for mode in ("ste_value", "ste_mask", "counterfactual"):
        any_plan = sinkhorn(torch.randn(2, 8, 8, generator=draw(1)), 1.0)
        found = prune_hard(weight, score, any_plan, inner, first, TWO_OF_FOUR, mode)
        assert torch.equal(found, masked)
    soft = sinkhorn(torch.randn(2, 8, 8, generator=draw(2)), 1.0)
    assert not torch.allclose(prune_soft(weight, score, soft, first, TWO_OF_FOUR), masked, atol=0.1)


def gradient(mode: str, to_weight: torch.Tensor, problem) -> torch.Tensor:
    weight, score, first, inner = problem
    plan = torch.full((2, 8, 8), 1 / 8).requires_grad_()
    pruned = prune_hard(weight, score, plan, inner, first, TWO_OF_FOUR, mode)
    (found,) = torch.autograd.grad((pruned * to_weight).sum(), plan)
    return found


def test_the_counterfactual_gradient_is_what_a_moved_channel_changes():
    """Linear loss: the price of channel i in slot j, the group decided anew without j's channel."""
    problem = layer()
    weight, score, first, inner = problem
    to_weight = torch.randn(10, 16, generator=draw(7))
    found = gradient("counterfactual", to_weight, problem)
    order = refine(first, inner)
    worth = to_weight * weight
    for block, slot in ((0, 1), (1, 6)):
        place = 8 * block + slot
        group = [4 * (place // 4) + k for k in range(4) if 4 * (place // 4) + k != place]
        others = order[group]
        for channel in range(8):
            if channel in inner[block, [one % 8 for one in group]]:
                continue  # within its group a channel changes nothing
            one = first[8 * block + channel]
            expected = 0.0
            for row in range(10):
                ranked = sorted(others.tolist(), key=lambda c, row=row: -float(score[row, c]))
                rival = ranked[1]  # the second best of the three others
                if score[row, one] > score[row, rival]:
                    expected += float(worth[row, one] - worth[row, rival])
            assert float(found[block, channel, slot]) == pytest.approx(expected, abs=1e-4)


def test_on_the_retained_score_counterfactuals_move_and_values_do_not():
    """The trap of the straight-through value: the present order is its own optimum."""
    _, score, first, inner = layer(rows=200)
    inner = torch.arange(8).expand(2, 8)
    problem = (score, score, first, inner)  # the loss is minus the retained score
    value = gradient("ste_value", -torch.ones_like(score) / 2, problem)
    assert torch.equal(assign(value), inner)
    moved = gradient("counterfactual", -torch.ones_like(score), problem)
    threshold, _ = rivals(score[:, first], TWO_OF_FOUR.keep, TWO_OF_FOUR.group)
    prices = torch.stack(
        [
            (score[:, first][:, 8 * b : 8 * b + 8, None] - threshold[:, None, 8 * b : 8 * b + 8])
            .clamp(min=0)
            .sum(dim=0)
            for b in range(2)
        ]
    )
    across = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)) == 0
    assert torch.allclose(moved[:, across], -prices[:, across], atol=1e-4)
    assert not torch.equal(assign(moved), inner)
