"""Sites, and orders that are folded into the weights of a model."""

import pytest
import torch
from families import CONFIGS, family_model

from effllm.modules.calibration.stream import BlockStream
from effllm.modules.errors import ConfigError, UnsupportedModelError
from effllm.modules.modeling.blocks import prunable_layers
from effllm.modules.modeling.tiny import tiny_model
from effllm.modules.permutation.learning import Matching
from effllm.modules.permutation.orders import canonical, ordered_mask
from effllm.modules.permutation.sites import (
    RESIDUAL,
    assemble,
    fold,
    free_sites,
    gather_sites,
    layer_orders,
)
from effllm.modules.sparsity.masks import nm_mask
from effllm.modules.sparsity.patterns import Grouped
from effllm.modules.vision.classifier import digit_classifier
from effllm.modules.vision.digits import digits

TWO_OF_FOUR = Grouped(keep=2, group=4)
FOLDED = ("llama", "mistral", "qwen2", "qwen3", "opt", "opt_post_norm", "gpt2", "vit")
TOKENS = torch.arange(3, 60).reshape(1, -1)


def uneven(family: str):
    """A model whose norms and biases are no ones and zeros, so that a fold must move them."""
    vision = family == "vit"
    model = digit_classifier(layers=2, width=32, heads=4, seed=0) if vision else tiny_model(family)
    model.eval()
    generator = torch.Generator().manual_seed(5)
    for value in model.parameters():
        if value.dim() == 1:
            value.data = torch.rand(value.shape, generator=generator) + 0.5
    return model


def random_orders(model) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        site.name: canonical(torch.randperm(site.columns, generator=generator), 4)
        for site in free_sites(model)
    }


def logits(model) -> torch.Tensor:
    inputs = TOKENS if model.main_input_name == "input_ids" else digits("test")[0][:3]
    with torch.no_grad():
        return model(inputs).logits


@pytest.mark.parametrize("family", FOLDED)
def test_a_folded_model_computes_the_same(family):
    model = uneven(family)
    before = logits(model)
    fold(model, random_orders(model))
    assert float((logits(model) - before).abs().max() / before.abs().max()) < 1e-5


@pytest.mark.parametrize("family", CONFIGS)
def test_a_family_folds_exactly_or_is_refused(family):
    model = family_model(family)
    before = logits(model)
    try:
        fold(model, random_orders(model))
    except UnsupportedModelError:
        return
    assert float((logits(model) - before).abs().max() / before.abs().max()) < 1e-5


@pytest.mark.parametrize("family", FOLDED)
def test_neighbours_of_the_folded_weight_are_the_groups_of_the_order(family):
    model = uneven(family)
    layers = prunable_layers(model)
    widths = {name: layer.columns for name, layer in layers.items()}
    orders = random_orders(model)
    of_layers = layer_orders(free_sites(model), orders, widths)
    masked = {
        name: ordered_mask(layer.read().abs(), of_layers[name], TWO_OF_FOUR)
        for name, layer in layers.items()
    }
    originals = {name: layer.read().clone() for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.write(originals[name] * masked[name])
    expected = logits(model)
    for name, layer in layers.items():
        layer.write(originals[name])
    fold(model, orders)
    for layer in prunable_layers(model).values():
        layer.write(layer.read() * nm_mask(layer.read().abs(), keep=2, group=4))
    assert float((logits(model) - expected).abs().max() / expected.abs().max()) < 1e-5


def test_each_part_of_a_fold_is_needed():
    """The order of one head alone, of up without gate, of a bias left behind: other outputs."""
    model = uneven("qwen2")
    before = logits(model)
    layers = prunable_layers(model)
    order = torch.arange(16)
    order[:4] = torch.tensor([3, 1, 0, 2])
    output = layers["0.self_attn.o_proj"]
    output.write(
        output.read()[:, torch.cat([order, torch.arange(16, 64)])]
    )  # one query head of two
    rows = layers["0.self_attn.v_proj"].module
    rows.weight.data[:16] = rows.weight.data[:16][order]
    rows.bias.data[:16] = rows.bias.data[:16][order]
    assert (logits(model) - before).abs().max() > 1e-3

    model = uneven("qwen2")
    swapped = torch.arange(128)
    swapped[:2] = torch.tensor([1, 0])
    layers = prunable_layers(model)
    layers["0.mlp.down_proj"].write(layers["0.mlp.down_proj"].read()[:, swapped])
    layers["0.mlp.up_proj"].write(layers["0.mlp.up_proj"].read()[swapped])
    assert (logits(model) - before).abs().max() > 1e-4


def test_layers_with_equal_inputs_share_a_site(any_model):
    stream = BlockStream(any_model, torch.arange(3, 35).reshape(1, -1), 1)
    layers = prunable_layers(any_model)
    widths = {name: layer.columns for name, layer in layers.items()}
    sites = gather_sites(stream.all_groups(), widths)
    assert sorted(m.layer for site in sites for m in site.members) == sorted(layers)
    orders = {site.name: torch.randperm(site.columns) for site in sites}
    of_layers = layer_orders(sites, orders, widths)
    for site in sites:
        for member in site.members:
            assert torch.equal(of_layers[member.layer], orders[site.name])


def test_the_residual_stream_has_one_order(tiny_llama):
    sites = {site.name: site for site in free_sites(tiny_llama)}
    assert {member.layer.partition(".")[2] for member in sites[RESIDUAL].members} == {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"
    }  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pieces_of_all_sites_make_whole_matrices(family):
    model = tiny_model(family)
    layers, sites = prunable_layers(model), free_sites(model)[::-1]
    pieces = [
        [layers[member.layer].read()[:, columns] for member in site.members
         for columns in member.columns]
        for site in sites
    ]  # fmt: skip
    whole = assemble(sites, pieces)
    assert set(whole) == set(layers)
    assert all(torch.equal(whole[name], layer.read()) for name, layer in layers.items())


def test_families_without_known_folds_are_refused():
    with pytest.raises(UnsupportedModelError, match="level=gather"):
        free_sites(family_model("gpt_neox"))


def test_blocks_must_hold_whole_groups():
    matching = Matching(mode="soft", groups=4, block_size=None, first_temperature=1.0,
                        last_temperature=0.1, noise=0.0)  # fmt: skip
    assert matching.blocks(64, TWO_OF_FOUR, "0.o") == (4, 16)
    with pytest.raises(ConfigError, match=r"site 0\.o: 24 channels.*blocks of 6.*groups of 4"):
        matching.blocks(24, TWO_OF_FOUR, "0.o")
    with pytest.raises(ValueError, match="groups or block_size"):
        Matching(mode="soft", groups=4, block_size=64, first_temperature=1.0,
                 last_temperature=0.1, noise=0.0)  # fmt: skip
