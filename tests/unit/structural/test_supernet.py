"""What a supernet holds, and what the sub-layers behind each other see while it is built."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_supernets import build, store, windows

from effllm.modules.calibration.statistics import Gram
from effllm.modules.calibration.stream import BlockStream
from effllm.modules.errors import ArtifactError, ConfigError, NumericalError
from effllm.modules.modeling.tiny import tiny_model
from effllm.modules.structural.elimination import LocalPruner
from effllm.modules.structural.supernet import (
    Supernet,
    SupernetBuilder,
    level_removals,
    level_shares,
    mean_weight,
)
from effllm.modules.structural.units import Kept, key_matrix, padded, sublayers


def test_levels_are_whole_units_around_the_centre():
    assert level_removals(12, 5, 1, 4) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert level_removals(9, 4, 2, 4) == [0, 2, 4, 6, 8]
    assert level_removals(128, 32, 16, 4) == [0, 16, 32, 48, 64, 80, 96]
    assert level_removals(7, 3, 5, 0) == [3]


@pytest.mark.parametrize("mode", ["expectation", "uniform", "level0", "random"])
def test_shares_sum_to_one(mode):
    shares = level_shares([0, 4, 8, 12], 12, 4, mode, torch.Generator().manual_seed(0))
    assert sum(shares) == pytest.approx(1)
    expected = {"expectation": [0.5, 1 / 3, 1 / 6, 0], "uniform": [0.25] * 4,
                "level0": [0, 1, 0, 0]}  # fmt: skip
    assert mode == "random" or shares == pytest.approx(expected[mode])
    assert mode != "random" or sorted(shares) == [0, 0, 0, 1]


def test_the_mean_weight_gives_the_mean_of_the_levels_outputs():
    layers, _, centre, found, _ = build(tiny_model("llama"))
    for layer in layers:
        removals = [one.removed for one in found[layer.name].levels]
        shares = level_shares(
            removals, layer.units, centre[layer.name], "expectation", torch.Generator()
        )
        inputs = torch.randn(
            5, layer.units * layer.size, generator=torch.Generator().manual_seed(1)
        )
        outputs = [
            share * (inputs @ padded(layer, Kept(level.kept, level.weight)).T)
            for share, level in zip(shares, found[layer.name].levels, strict=True)
        ]
        mixed = inputs @ mean_weight(layer, found[layer.name], shares).T
        torch.testing.assert_close(mixed, sum(outputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["none", "level0", "expectation", "uniform"])
def test_the_model_holds_exactly_what_the_mode_says(mode):
    """The released code installs dense weights whatever it is asked for."""
    dense = tiny_model("llama")
    model = copy.deepcopy(dense)
    layers, removals, centre, found, _ = build(model, accumulation=mode)
    for layer in layers:
        now = key_matrix(model, layer).read()
        if mode == "none":
            assert torch.equal(now, key_matrix(dense, layer).read())
            continue
        shares = level_shares(
            removals[layer.name], layer.units, centre[layer.name], mode, torch.Generator()
        )
        assert torch.equal(now, mean_weight(layer, found[layer.name], shares))
        assert not torch.equal(now, key_matrix(dense, layer).read())
        if mode == "level0":
            level = removals[layer.name].index(centre[layer.name])
            kept = found[layer.name].levels[level]
            assert torch.equal(now, padded(layer, Kept(kept.kept, kept.weight)))


def test_later_statistics_see_the_pruned_path():
    dense = tiny_model("llama")
    seen = {
        mode: build(copy.deepcopy(dense), accumulation=mode)[-1] for mode in ("none", "expectation")
    }
    first, last = "0.self_attn.o_proj", "1.mlp.down_proj"
    torch.testing.assert_close(seen["none"][first], seen["expectation"][first])
    assert not torch.allclose(seen["none"][last], seen["expectation"][last], rtol=1e-2)
    stream = BlockStream(dense, windows(), 2)
    stream.advance()
    torch.testing.assert_close(seen["none"][last], stream.collect(Gram)["mlp.down_proj"])
    untouched = build(copy.deepcopy(dense), sparsity=0.0, reach=0)[-1]  # all levels dense
    torch.testing.assert_close(untouched[last], seen["none"][last])


def test_sublayer_order_shows_the_pruned_attention_to_the_feed_forward_network():
    name = "0.mlp.down_proj"
    grams = {at: build(tiny_model("llama"), accumulate_at=at)[-1] for at in ("sublayer", "block")}
    dense = BlockStream(tiny_model("llama"), windows(), 2).collect(Gram)["mlp.down_proj"]
    torch.testing.assert_close(grams["block"][name], dense)
    assert not torch.allclose(grams["sublayer"][name], dense, rtol=1e-2)


def test_statistics_of_two_halves_add_up_to_those_of_the_whole():
    """What a sum over ranks would give."""
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    whole, parts = Gram(8), [Gram(8), Gram(8)]
    whole.update(inputs)
    for part, half in zip(parts, inputs.split(32), strict=True):
        part.update(half)
    torch.testing.assert_close(sum(part.sum for part in parts) / 64, whole.sum / 64)


def test_a_stored_supernet_gives_back_every_level(tmp_path):
    dense = tiny_model("llama")
    supernet, found = store(copy.deepcopy(dense), tmp_path)
    assert [one.name for one in supernet.layers] == list(found)
    for layer in supernet.layers:
        assert supernet.errors[layer.name] == sorted(supernet.errors[layer.name])
        for level in found[layer.name].levels:
            kept = supernet.kept(dense, layer, level.removed)
            assert torch.equal(kept.units, level.kept)
            assert level.removed == 0 or torch.equal(kept.weight, level.weight)
    whole = supernet.kept(dense, supernet.layers[0], 0)
    assert torch.equal(whole.weight, key_matrix(dense, supernet.layers[0]).read())


def test_missing_truncated_and_foreign_levels_are_refused(tmp_path):
    model = tiny_model("llama")
    supernet, _ = store(copy.deepcopy(model), tmp_path)
    layer = supernet.layers[1]
    with pytest.raises(ArtifactError, match="no level with 5 removed units; it has"):
        supernet.kept(model, layer, 5)
    file = tmp_path / f"{layer.name}.safetensors"
    removed = supernet.centre[layer.name]
    whole = load_file(file)
    save_file({k: v for k, v in whole.items() if k != f"weight-{removed}"}, file)
    with pytest.raises(ArtifactError, match="lacks the weights of the level"):
        supernet.kept(model, layer, removed)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="block-000-ffn.safetensors cannot be read"):
        supernet.kept(model, layer, removed)
    file.unlink()
    with pytest.raises(ArtifactError, match="block-000-ffn.safetensors is missing"):
        Supernet.open(tmp_path, "here")


def test_errors_name_the_sublayer():
    model = tiny_model("llama")
    stream = BlockStream(model, windows(), 2)
    layers = sublayers(model)[:2]
    builder = SupernetBuilder(pruner=LocalPruner())
    key_matrix(model, layers[0]).write(torch.full((64, 64), torch.nan))
    removals = {one.name: [one.units // 2] for one in layers}
    with pytest.raises(NumericalError, match="block-000-attention, layer self_attn.o_proj"):
        builder.build_block(
            stream, layers, removals, {k: v[0] for k, v in removals.items()}, torch.Generator()
        )


def test_unknown_modes_are_refused():
    with pytest.raises(ConfigError, match="none, level0, expectation"):
        SupernetBuilder(pruner=LocalPruner(), accumulation="median")
    with pytest.raises(ConfigError, match="sublayer or block"):
        SupernetBuilder(pruner=LocalPruner(), accumulate_at="model")
