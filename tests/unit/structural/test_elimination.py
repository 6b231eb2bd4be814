"""Local pruning of one key matrix against brute force and its own identities, in float64."""

import itertools

import pytest
import torch

from effllm.modules.errors import ConfigError, NumericalError
from effllm.modules.structural.elimination import LocalPruner, Remaining, damped, unit_scores

TINY = 1e-10  # damping that stands for none


def layer(seed=0, inputs=12, outputs=6, tokens=64):
    """(R, C) weight and (C, C) X^T X of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    mixing = torch.eye(inputs, dtype=torch.float64) + 0.5 * mixing / inputs**0.5
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) @ mixing
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), x.T @ x


def best_on(weight, gram, kept, size=1, damping=0.01):
    """Error of the refit on a kept set by its definition, and the refit."""
    hessian = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    rows = (torch.tensor(kept)[:, None] * size + torch.arange(size)).reshape(-1)
    dense = weight.T
    values = torch.zeros_like(dense)
    values[rows] = torch.linalg.solve(hessian[rows][:, rows], (hessian @ dense)[rows])
    difference = dense - values
    error = (difference * (hessian @ difference)).sum() / (dense * (hessian @ dense)).sum()
    return float(error), values.T


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("score", ["official", "paper", "second"])
def test_every_level_is_the_least_squares_optimum_on_its_units(size, score):
    weight, gram = layer()
    units = 12 // size
    found = LocalPruner(score=score, neuron_chunk=2).eliminate(
        weight, gram, size=size, removals=list(range(units + 1))
    )
    for level in found.levels[:-1]:
        error, values = best_on(weight, gram, level.kept.tolist(), size)
        rows = (level.kept[:, None] * size + torch.arange(size)).reshape(-1)
        torch.testing.assert_close(level.weight, values[:, rows], rtol=1e-9, atol=1e-9)
        assert level.error == pytest.approx(error, abs=1e-12)
    assert found.levels[-1].error == pytest.approx(1.0)


@pytest.mark.parametrize(("size", "chunk"), [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_what_is_carried_along_is_the_inverse_and_the_refit_of_the_units_left(size, chunk):
    weight, gram = layer()
    hessian, factor, _ = damped(gram, 0.01)
    target = hessian @ weight.T
    state = Remaining(torch.cholesky_inverse(factor), weight.T.clone(), target, size)
    gone = []
    for step in range(3):
        gone += state.remove("official", chunk)
        if step == 1:
            state.shrink()
        left = [unit for unit in range(12 // size) if unit not in gone]
        rows = torch.tensor([size * unit + i for unit in left for i in range(size)])
        inverse = torch.linalg.inv(hessian[rows][:, rows])
        mine = state.units[~state.gone]
        assert mine.tolist() == left
        places = (~state.gone).repeat_interleave(size).nonzero()[:, 0]
        torch.testing.assert_close(state.inverse[places][:, places], inverse)
        torch.testing.assert_close(state.values[places], inverse @ target[rows])
        if len(left) <= chunk:
            break


def test_no_change_of_the_refit_lowers_the_error():
    weight, gram = layer()
    level = LocalPruner().eliminate(weight, gram, size=1, removals=[6]).levels[0]
    hessian = gram + 0.01 * gram.diagonal().mean() * torch.eye(12, dtype=gram.dtype)
    values = torch.zeros_like(weight)
    values[:, level.kept] = level.weight

    def error(one):
        return float((((weight - one) @ hessian) * (weight - one)).sum())

    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        step = torch.zeros_like(weight)
        step[:, level.kept] = 1e-3 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
        assert error(values + step) > error(values)


@pytest.mark.parametrize("size", [1, 3])
def test_the_second_order_score_is_exactly_half_the_rise_of_the_error(size):
    weight, gram = layer()
    hessian, _, _ = damped(gram, 0.01)
    target = hessian @ weight.T
    total = float((weight.T * target).sum())
    for kept in (list(range(12 // size)), [0, 2, 3]):
        rows = (torch.tensor(kept)[:, None] * size + torch.arange(size)).reshape(-1)
        inverse, values = torch.zeros_like(hessian), torch.zeros_like(weight.T)
        inverse[rows[:, None], rows] = torch.linalg.inv(hessian[rows][:, rows])
        values[rows] = inverse[rows][:, rows] @ target[rows]
        active = torch.zeros(12 // size, dtype=torch.bool)
        active[kept] = True
        scores = unit_scores(inverse, values, target, size, "second", active)
        before = best_on(weight, gram, kept, size)[0]
        for unit in kept:
            after = best_on(weight, gram, [one for one in kept if one != unit], size)[0]
            assert float(scores[unit]) == pytest.approx((after - before) * total / 2, rel=1e-8)


def test_first_order_shares_sum_to_the_explained_energy():
    weight, gram = layer()
    hessian, factor, _ = damped(gram, 0.01)
    target = hessian @ weight.T
    both = unit_scores(
        torch.cholesky_inverse(factor), weight.T, target, 3, "official", torch.ones(4).bool()
    )
    second = unit_scores(
        torch.cholesky_inverse(factor), weight.T, target, 3, "second", torch.ones(4).bool()
    )
    assert float((both - second).sum()) == pytest.approx(float((weight.T * target).sum()))


def test_greedy_second_order_is_near_the_brute_force_optimum_and_never_below():
    """Over 12 layers within 5 % of the best of all C(10, 5) sets on average."""
    ratios = []
    for seed in range(12):
        weight, gram = layer(seed, inputs=10)
        pruner = LocalPruner(score="second", neuron_chunk=1)
        greedy = pruner.eliminate(weight, gram, size=1, removals=[5]).levels[0].error
        best = min(best_on(weight, gram, list(k))[0] for k in itertools.combinations(range(10), 5))
        ratios.append(greedy / best)
    assert min(ratios) >= 1 - 1e-9
    assert sum(ratios) / len(ratios) < 1.05


@pytest.mark.parametrize("score", ["official", "paper", "second"])
def test_with_unrelated_inputs_all_scores_rank_as_wanda_sp_and_nothing_is_repaired(score):
    weight, _ = layer()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    energy = torch.linspace(1, 9, 12, dtype=torch.float64)[order]
    pruner = LocalPruner(score=score, neuron_chunk=1, damping=TINY)
    found = pruner.eliminate(weight, torch.diag(energy), size=1, removals=[0, 4])
    wanda = energy * weight.square().sum(dim=0)
    assert sorted(found.order) == sorted(wanda.argsort()[:4].tolist())
    kept = found.levels[1].kept
    torch.testing.assert_close(found.levels[1].weight, weight[:, kept], rtol=1e-7, atol=1e-7)
    share = {"second": 0.5, "official": 1.5, "paper": 1.5}[score]  # q = wanda / 2, f = 2 q
    hessian = torch.diag(energy)
    inputs = torch.linalg.inv(hessian), weight.T, hessian @ weight.T
    scores = unit_scores(*inputs, 1, score, torch.ones(12, dtype=torch.bool))
    torch.testing.assert_close(scores, share * wanda)


def test_of_two_equal_inputs_one_goes_for_free_and_the_other_takes_its_weight():
    weight, gram = layer(inputs=6)
    twin = torch.eye(7, dtype=torch.float64)[:, :6]
    twin[6, 2] = 1  # input 6 is input 2
    doubled = twin @ gram @ twin.T
    wide = torch.cat([weight, torch.ones(6, 1, dtype=torch.float64)], dim=1)
    pruner = LocalPruner(score="second", neuron_chunk=1, damping=1e-9)
    found = pruner.eliminate(wide, doubled, size=1, removals=[1])
    assert found.order[0] in (2, 6) and found.levels[0].error < 1e-6
    survivor = 8 - found.order[0]
    place = found.levels[0].kept.tolist().index(survivor)
    torch.testing.assert_close(
        found.levels[0].weight[:, place], wide[:, 2] + wide[:, 6], rtol=1e-5, atol=1e-5
    )


def test_first_order_terms_may_spare_an_input_that_another_one_repeats():
    """What `second` takes for nothing, the other scores hold for useful."""
    weight, gram = layer(inputs=6)
    twin = torch.eye(7, dtype=torch.float64)[:, :6]
    twin[6, 2] = 1  # input 6 is input 2
    wide = torch.cat([weight, weight[:, 2:3]], dim=1)
    wide[:, 4] *= 0.01
    first = {
        score: LocalPruner(score=score, neuron_chunk=1, damping=1e-9)
        .eliminate(wide, twin @ gram @ twin.T, size=1, removals=[1])
        .order[0]
        for score in ("second", "official", "paper")
    }
    assert first["second"] in (2, 6)
    assert first["official"] not in (2, 6) and first["paper"] not in (2, 6)


@pytest.mark.parametrize("score", ["official", "paper", "second"])
def test_units_without_weights_go_first(score):
    weight, gram = layer()
    weight[:, 3:6] = 0
    found = LocalPruner(score=score).eliminate(weight, gram, size=3, removals=[1])
    assert found.order == [1] and found.levels[0].error == pytest.approx(0, abs=1e-12)


def test_scale_order_and_dead_inputs_do_not_matter():
    weight, gram = layer()
    pruner = LocalPruner(neuron_chunk=1)
    plain = pruner.eliminate(weight, gram, size=1, removals=[0, 5])
    scaled = pruner.eliminate(weight, 1000 * gram, size=1, removals=[0, 5])
    assert scaled.order == plain.order
    torch.testing.assert_close(scaled.levels[1].weight, plain.levels[1].weight)
    turned = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    moved = pruner.eliminate(weight[:, turned], gram[turned][:, turned], size=1, removals=[0, 5])
    assert [int(turned[one]) for one in moved.order] == plain.order
    padded = torch.zeros(13, 13, dtype=torch.float64)
    padded[:12, :12] = gram * 13 / 12  # keeps the mean diagonal, and with it the damping
    wide = torch.cat([weight, torch.ones(6, 1, dtype=torch.float64)], dim=1)
    dead = pruner.eliminate(wide, padded, size=1, removals=[0, 6])
    assert dead.order == [12, *plain.order]  # a dead input goes first
    # Its mean diagonal is that of `gram`, whose values are a 12th larger: a little less damping.
    torch.testing.assert_close(dead.levels[1].weight, plain.levels[1].weight, rtol=5e-3, atol=5e-3)


def test_fewer_tokens_than_inputs_stay_finite():
    weight, gram = layer(tokens=5)
    found = LocalPruner().eliminate(weight, gram, size=1, removals=[3, 6, 11])
    assert all(bool(one.weight.isfinite().all()) for one in found.levels)


def test_one_pass_gives_nested_levels_equal_to_runs_of_their_own():
    weight, gram = layer(inputs=16)
    pruner = LocalPruner(neuron_chunk=4)
    found = pruner.eliminate(weight, gram, size=1, removals=[0, 4, 8, 12, 16])
    errors = [one.error for one in found.levels]
    assert errors == sorted(errors)
    for larger, smaller in itertools.pairwise(found.levels):
        assert set(smaller.kept.tolist()) < set(larger.kept.tolist())
    for level in found.levels:
        own = pruner.eliminate(weight, gram, size=1, removals=[level.removed]).levels[0]
        assert torch.equal(own.kept, level.kept)
        torch.testing.assert_close(own.weight, level.weight)


def test_nothing_and_everything_removed_bypass_the_solver():
    weight, gram = layer()
    weight = weight.float()
    found = LocalPruner().eliminate(weight, gram, size=3, removals=[0, 4])
    assert torch.equal(found.levels[0].weight, weight) and found.levels[0].error == 0
    assert found.levels[1].weight.shape == (6, 0) and found.levels[1].error == pytest.approx(1)
    single = LocalPruner().eliminate(weight, gram, size=12, removals=[0, 1])
    assert [len(one.kept) for one in single.levels] == [1, 0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("score", ["official", "paper", "second"])
def test_repair_beats_plain_masking_and_the_literal_update_of_the_paper_does_not(score, seed):
    weight, gram = layer(seed)
    repaired, masked = (
        LocalPruner(score=score, refit=refit)
        .eliminate(weight, gram, size=1, removals=[6])
        .levels[0]
        for refit in (True, False)
    )
    assert torch.equal(masked.kept, repaired.kept)
    assert torch.equal(masked.weight, weight[:, masked.kept])
    assert repaired.error < masked.error
    literal = weight[:, masked.kept] + repaired.weight  # Algorithm 1, line 8
    hessian = damped(gram, 0.01)[0]
    difference = weight.clone()
    difference[:, masked.kept] -= literal
    total = float((weight * (weight @ hessian)).sum())
    assert float((difference * (difference @ hessian)).sum()) / total > masked.error


def test_an_indefinite_matrix_gets_more_damping_or_is_refused():
    weight, gram = layer()
    shifted = gram - 0.5 * torch.linalg.eigvalsh(gram)[3] * torch.eye(12, dtype=gram.dtype)
    found = LocalPruner(damping=1e-3).eliminate(weight, shifted, size=1, removals=[4])
    assert found.damping > 1e-3 and bool(found.levels[0].weight.isfinite().all())
    with pytest.raises(NumericalError, match="not positive definite even with damping"):
        hopeless = 1000 - 999 * torch.eye(12, dtype=gram.dtype)
        LocalPruner().eliminate(weight, hopeless, size=1, removals=[4])
    indefinite = torch.eye(4, dtype=gram.dtype)
    indefinite[0, 0] = -1
    everything = torch.ones(1, dtype=torch.bool)
    with pytest.raises(NumericalError, match="lost its definiteness"):
        unit_scores(indefinite, weight.T[:4], weight.T[:4], 4, "second", everything)
    with pytest.raises(NumericalError, match="ever different from zero"):
        LocalPruner().eliminate(weight, torch.zeros_like(gram), size=1, removals=[4])


def test_settings_out_of_range_are_refused():
    weight, gram = layer()
    with pytest.raises(ConfigError, match="official, paper or second"):
        LocalPruner(score="first")
    with pytest.raises(ConfigError, match="damping above 0"):
        LocalPruner(damping=0.0)
    with pytest.raises(ValueError, match="rise within 0..12"):
        LocalPruner().eliminate(weight, gram, size=1, removals=[3, 13])
