"""Other structural pruners on tiny models, against their definitions."""

import pytest
import torch
from toy_supernets import deep_model, windows

from effllm.modules.calibration.statistics import Energy
from effllm.modules.calibration.stream import BlockStream
from effllm.modules.structural.baselines import (
    BlockInfluence,
    Fluctuation,
    Moments,
    Uniform,
    fluctuation_scores,
)
from effllm.modules.structural.units import SubLayer, key_matrix, sublayers, uniform_targets


def chosen(baseline, model, sparsity=0.5):
    """(sub-layers, targets, what is left of them)."""
    layers = sublayers(model)
    targets = uniform_targets(layers, sparsity)
    stream = BlockStream(model, windows(), 2)
    return layers, targets, baseline.choose(stream, layers, targets, torch.Generator())


def inputs_of(model, statistic):
    """Sub-layer name -> statistic of its key matrix's inputs in the dense model."""
    stream, found, layers = BlockStream(model, windows(), 2), {}, sublayers(model)
    for index in range(len(stream.blocks)):
        mine = [one for one in layers if one.block == index]
        seen = stream.collect(statistic, groups=[[one.key] for one in mine])
        found |= {one.name: seen[one.key] for one in mine}
        stream.advance()
    return found


def test_moments_do_not_depend_on_the_pieces():
    values = 3 + torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    moments = Moments(4)
    for piece in values.split([7, 1, 30, 12]):
        moments.update(piece)
    mean, variance = moments.value()
    torch.testing.assert_close(mean, values.mean(dim=0))
    torch.testing.assert_close(variance, values.var(dim=0))


def test_flap_squares_the_channels_of_heads_and_standardises_over_channels():
    channels = torch.tensor([1.0, 3.0, 2.0, 2.0])
    heads = fluctuation_scores(channels, SubLayer(0, "attention", "o", 2, 2, 1))
    squared = torch.tensor([1.0, 9.0, 4.0, 4.0])
    torch.testing.assert_close(
        heads, torch.tensor([5.0 - 4.5, 4.0 - 4.5]) / squared.std()
    )  # means alone would tie
    neurons = fluctuation_scores(channels, SubLayer(0, "ffn", "down", 4, 1))
    torch.testing.assert_close(neurons, (channels - 2) / channels.std())


def test_the_bias_of_flap_keeps_the_mean_output():
    model = deep_model()
    layers, targets, kept = chosen(Fluctuation(), model)
    moments = inputs_of(model, Moments)
    for one in layers:
        mean = moments[one.name][0]
        left = kept[one.name]
        smaller = left.weight @ mean[one.channels(left.units)] + left.bias
        torch.testing.assert_close(smaller, key_matrix(model, one).read() @ mean)
        assert len(left.units) >= 1
    for kind in ("attention", "ffn"):
        gone = [one.units - len(kept[one.name].units) for one in layers if one.kind == kind]
        assert sum(gone) == sum(targets[one.name] for one in layers if one.kind == kind)
        assert kind == "attention" or len(set(gone)) > 1  # ranked over depth


def test_wanda_sp_drops_the_lowest_scores_behind_the_blocks_pruned_before():
    model, dense = deep_model(), deep_model()
    layers, targets, kept = chosen(Uniform(score="wanda"), model)
    energies = inputs_of(dense, Energy)
    for one in layers[:1]:  # inputs of the others depend on it
        weight = key_matrix(dense, one).read()
        channels = weight.abs().sum(dim=0) * energies[one.name].sqrt()
        scores = channels.view(one.units, one.size).sum(dim=1)
        highest = scores.topk(one.units - targets[one.name]).indices.sort().values
        assert torch.equal(kept[one.name].units, highest)
        assert torch.equal(kept[one.name].weight, weight[:, one.channels(highest)])
    assert all(len(kept[one.name].units) == one.units - targets[one.name] for one in layers)


def test_a_block_that_changes_nothing_goes_first():
    model = deep_model()
    for one in sublayers(model):
        if one.block == 2:
            key_matrix(model, one).write(torch.zeros_like(key_matrix(model, one).read()))
    _, _, kept = chosen(BlockInfluence(), model, 0.25)
    gone = {name for name, one in kept.items() if not len(one.units)}
    assert gone == {"block-002-attention", "block-002-ffn"}


@pytest.mark.parametrize(("sparsity", "blocks"), [(0.0, 0), (0.25, 1), (0.39, 1), (0.65, 2)])
def test_as_many_blocks_go_as_bring_the_parameters_nearest(sparsity, blocks):
    """A block takes keys and values with it: 39 % of four blocks are nearer to two, not in size."""
    layers, _, kept = chosen(BlockInfluence(), deep_model(), sparsity)
    assert sum(not len(kept[one.name].units) for one in layers) == 2 * blocks
