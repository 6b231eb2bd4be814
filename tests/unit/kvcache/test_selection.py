"""Which channels are kept and what pruned ones become: brute force, invariants, scale laws."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effllm.modules.kvcache.formats.spark import SparkKeys
from effllm.modules.kvcache.formats.think import ThinkKeys
from effllm.modules.kvcache.queries import channel_weight
from effllm.modules.kvcache.recovery import channel_unit, sampled_magnitudes, token_gain
from effllm.modules.kvcache.selection import (
    channels_for_share,
    grouped_channels,
    keep_counts,
    keep_largest,
    kept_channels,
    saliency,
)


@pytest.fixture
def problem_of():
    def make(channels=16, tokens=9, heads=2, seed=0):
        generator = torch.Generator().manual_seed(seed)
        scales = torch.exp(torch.randn(channels, generator=generator))
        keys = torch.randn(1, heads, tokens, channels, generator=generator) * scales
        queries = torch.randn(1, 3 * heads, 12, channels, generator=generator)
        return keys, queries, channel_weight(queries, heads)

    return make


@pytest.mark.parametrize(
    ("channels", "ratio", "kept"),
    [(64, 0.5, 32), (64, 0.8, 13), (128, 0.8, 26), (128, 0.7, 39), (64, 0.0, 64), (10, 0.1, 9)],
)
def test_kept_channels_as_in_the_table(channels, ratio, kept):
    assert kept_channels(channels, ratio) == kept


@pytest.mark.parametrize("ratio", [1.0, -0.1, 1.5])
def test_ratios_that_leave_nothing_are_refused(ratio):
    with pytest.raises(ValueError, match="leaves none"):
        SparkKeys(ratio=ratio)


@pytest.mark.parametrize("kept", [1, 3, 7])
def test_the_choice_minimises_the_weighted_error_over_all_choices(problem_of, kept):
    keys, _, weight = problem_of(channels=8, tokens=4, heads=1)
    keep = keep_largest(saliency(keys, weight, "paper"), kept)
    cost = (weight.unsqueeze(2) * keys).square()[0, 0]
    best = [
        min(
            float(row[[j for j in range(8) if j not in chosen]].sum())
            for chosen in itertools.combinations(range(8), kept)
        )
        for row in cost
    ]
    found = cost.masked_fill(keep[0, 0], 0.0).sum(dim=-1)
    torch.testing.assert_close(found, torch.tensor(best))


def test_the_choice_minimises_the_true_error_of_uncorrelated_queries():
    keys = torch.randn(1, 1, 3, 6, generator=torch.Generator().manual_seed(0))
    queries = torch.diag(torch.tensor([3.0, 1.0, 0.5, 2.0, 0.1, 1.5]))[None, None]  # Q^T Q diagonal
    keep = keep_largest(saliency(keys, channel_weight(queries, 1), "paper"), 2)

    def error(mask):
        return (queries[0, 0] @ (keys[0, 0] * ~mask).T).square().sum(dim=0)

    for row in range(3):
        options = []
        for chosen in itertools.combinations(range(6), 2):
            mask = torch.zeros(3, 6, dtype=torch.bool)
            mask[row, list(chosen)] = True
            options.append(float(error(mask)[row]))
        assert float(error(keep[0, 0])[row]) == pytest.approx(min(options), rel=1e-5)


@given(st.integers(1, 12), st.integers(0, 3), st.integers(0, 2**16))
def test_every_row_keeps_exactly_as_many_and_ties_go_to_the_lower_channel(kept, top, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, top + 1, (5, 12), generator=generator).float()
    keep = keep_largest(scores, kept)
    assert (keep.sum(dim=-1) == kept).all()
    order = scores.sort(dim=-1, descending=True, stable=True).indices[:, :kept]
    assert torch.equal(keep, torch.zeros_like(keep).scatter_(-1, order, True))


def test_one_block_without_recovery_is_think(problem_of):
    keys, queries, weight = problem_of(tokens=11)
    keep = keep_largest(saliency(keys, weight, "paper"), 5, block=11)
    score = queries.reshape(1, 2, 3, 12, 16).square().mean(dim=(2, 3)) * keys.square().mean(dim=2)
    chosen = score.topk(5, dim=-1).indices.sort(dim=-1).values
    assert torch.equal(keep[0, :, 0].nonzero()[:, 1].reshape(2, 5), chosen[0])
    assert (keep == keep[:, :, :1]).all()
    think = ThinkKeys(share=5 / 16)
    assert torch.equal(think.decode(think.encode(keys, weight), 0, 11), keys * keep)


def test_magnitude_without_recovery_is_per_token_magnitude_pruning(problem_of):
    keys, _, weight = problem_of()
    form = SparkKeys(ratio=0.75, saliency="magnitude", recovery="zero", centred=False)
    found = form.decode(form.encode(keys, weight), 0, 9)
    threshold = keys.abs().sort(dim=-1).values[..., -4:-3]
    assert torch.equal(found, keys * (keys.abs() >= threshold))


def test_code_recovery_keeps_the_energy_and_paper_recovery_the_saliency(problem_of):
    keys, _, weight = problem_of()
    for family, power in (("code", 2), ("paper", 1)):
        keep = keep_largest(saliency(keys, weight, family), 4)
        gain = token_gain(keys, keep, weight, family)
        recovered = gain.unsqueeze(-1) * channel_unit(weight, family).unsqueeze(2)
        sums = [
            (weight.unsqueeze(2) * one.abs().pow(power)).masked_fill(keep, 0.0).sum(dim=-1)
            for one in (keys, recovered.expand_as(keys))
        ]
        torch.testing.assert_close(sums[0], sums[1])


def test_the_gain_of_the_paper_is_least_squares_and_never_worse_than_zero(problem_of):
    keys, _, weight = problem_of()
    keep = keep_largest(saliency(keys, weight, "paper"), 4)
    gain = token_gain(keys, keep, weight, "paper")
    size = saliency(keys, weight, "paper")

    def error(factor):
        return (size - (factor * gain).unsqueeze(-1)).masked_fill(keep, 0.0).square().sum(dim=-1)

    for factor in (0.0, 0.9, 0.99, 1.01, 1.1):
        assert (error(factor) >= error(1.0)).all()


def test_signs_beat_zeros_beat_think_on_gaussian_keys(problem_of):
    """The ordering of the specification's synthetic check, on queries that were not observed."""
    keys, _, weight = problem_of(channels=64, tokens=400, heads=1)
    unseen = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    errors = []
    for form in (
        SparkKeys(ratio=0.8, centred=False),
        SparkKeys(ratio=0.8, recovery="zero", centred=False),
        ThinkKeys(share=13 / 64),
        SparkKeys(ratio=0.8, signed=False, centred=False),
    ):
        found = form.decode(form.encode(keys, weight), 0, 400)
        errors.append(float(((found - keys)[0, 0] @ unseen.T).square().mean()))
    assert errors[0] < 0.6 * errors[1] and errors[1] < errors[2] and errors[3] > errors[1]


def test_scaling_keys_or_queries_and_moving_channels_or_tokens(problem_of):
    keys, queries, weight = problem_of()
    form = SparkKeys(ratio=0.75, centred=False)

    def rebuilt(keys, weight):
        return form.decode(form.encode(keys, weight), 0, keys.shape[2])

    plain = rebuilt(keys, weight)
    torch.testing.assert_close(rebuilt(4 * keys, weight), 4 * plain)
    torch.testing.assert_close(rebuilt(keys, channel_weight(7 * queries, 2)), plain)
    turned = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = rebuilt(keys[..., turned], weight[..., turned])
    torch.testing.assert_close(moved, plain[..., turned])
    torch.testing.assert_close(rebuilt(keys.flip(2), weight), plain.flip(2))


def test_centring_moves_with_the_keys(problem_of):
    keys, _, weight = problem_of()
    form = SparkKeys(ratio=0.75)
    shift = torch.linspace(-2, 2, 16)
    plain = form.decode(form.encode(keys, weight), 0, 9)
    moved = form.decode(form.encode(keys + shift, weight), 0, 9)
    near = (moved - plain - shift).abs() < 0.02  # the mean has 16 bits, so a near-tie may flip
    assert near.float().mean() > 0.98


def test_dead_queries_and_channels_do_not_divide_by_zero(problem_of):
    keys, queries, _ = problem_of()
    for silent in (torch.zeros_like(queries), queries * (torch.arange(16) > 3)):
        weight = channel_weight(silent, 2)
        form = SparkKeys(ratio=0.75)
        assert form.decode(form.encode(keys, weight), 0, 9).isfinite().all()


def test_outliers_in_half_precision_stay_finite():
    keys = torch.randn(1, 1, 20, 16, generator=torch.Generator().manual_seed(0))
    keys[..., 3] = 3e4
    weight = torch.rand(1, 1, 16)
    for dtype in (torch.float16, torch.bfloat16):
        for bits in (None, 8, 4):
            form = SparkKeys(ratio=0.75, bits=bits)
            found = form.decode(form.encode(keys.to(dtype), weight), 0, 20)
            assert found.isfinite().all()
            assert (found[..., 3] / 3e4 - 1).abs().max() < 0.01


def test_signed_means_may_cancel_and_rms_does_not():
    queries = torch.ones(1, 2, 4, 3)
    queries[:, 1, :, 0] = -1.0
    assert channel_weight(queries, 1, reduce="mean_signed")[0, 0, 0] < 1e-5
    assert torch.equal(channel_weight(queries, 1), torch.ones(1, 1, 3))


def test_channels_for_a_share_and_groups():
    scores = torch.tensor([[10.0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1.0] * 10])
    assert channels_for_share(scores, 0.99).tolist() == [1, 10]
    assert channels_for_share(scores, 0.45).tolist() == [1, 5]
    assert grouped_channels(scores).tolist() == [1, 9]  # 10 % and 90 % of ten channels
    keep = keep_counts(scores, torch.tensor([1, 9]))
    assert keep.sum(dim=-1).tolist() == [1, 9] and keep[0, 0] and not keep[1, 9]


@pytest.mark.parametrize("family", ["gaussian", "exponential"])
def test_sampled_magnitudes_follow_the_order_of_the_true_ones(problem_of, family):
    keys, _, weight = problem_of()
    scores = saliency(keys, weight, "paper")
    keep = keep_largest(scores, 4)
    generator = torch.Generator().manual_seed(0)
    found = sampled_magnitudes(keys, keep, weight, family=family, generator=generator)
    drawn = found * weight.unsqueeze(2)
    assert not drawn[keep].any() and (drawn >= 0).all()
    smallest = scores.masked_fill(~keep, float("inf")).amin(dim=-1, keepdim=True)
    assert (drawn <= smallest * (1 + 1e-5)).all()
    order = scores.masked_fill(keep, -1.0).argsort(dim=-1, descending=True)
    assert (drawn.gather(-1, order)[..., :11].diff(dim=-1) <= 1e-6).all()
