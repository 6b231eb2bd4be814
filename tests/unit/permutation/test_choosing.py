"""Choices among orders: sites whose right candidate is planted."""

from functools import partial

import pytest
import torch

from effllm.modules.modeling.blocks import prunable_layers
from effllm.modules.modeling.tiny import tiny_model
from effllm.modules.permutation.choosing import OrderChoice
from effllm.modules.permutation.sites import free_sites, gather_sites
from effllm.modules.training import fit

STEPS = 120


@pytest.fixture
def planted():
    """A model, its sites, and masks of two orders: what is kept whole at each site is drawn."""
    model = tiny_model("llama")
    layers = prunable_layers(model)
    groups = [
        [[name.partition(".")[2]] for name in layers if name.startswith(f"{block}.")]
        for block in range(model.config.num_hidden_layers)
    ]
    sites = gather_sites(groups, {name: layer.columns for name, layer in layers.items()})
    right = torch.randint(2, (len(sites),), generator=torch.Generator().manual_seed(1))
    masks = [
        {
            site.members[0].layer: torch.full_like(
                layers[site.members[0].layer].read(), number == one, dtype=torch.bool
            )
            for site, one in zip(sites, right.tolist(), strict=True)
        }
        for number in range(2)
    ]
    texts = torch.randint(3, 200, (STEPS, 24), generator=torch.Generator().manual_seed(2))
    return model, sites, masks, texts, right


def choice_of(planted, **changes):
    model, sites, masks, texts, _ = planted
    settings = {"steps": STEPS, "check_every": 8, "heldout": [texts[:2]], "lead": 0.5, "seed": 0}
    optimizer = partial(torch.optim.Adam, lr=0.3)
    return OrderChoice(model, sites, masks, optimizer, **settings | changes)


def train(module, folder, planted):
    fit(module, folder, epochs=1, accelerator="cpu", tensors=[planted[3]], batch_size=1)


def test_the_planted_choice_loses_nothing(planted):
    module, texts, right = choice_of(planted), planted[3], planted[4]
    share = torch.nn.functional.one_hot(right, 2).float()
    assert float(module.loss(texts[:3], share)) == pytest.approx(0, abs=1e-6)
    assert float(module.loss(texts[:3], 1 - share)) > 0.001


def test_the_planted_choice_is_found_and_the_best_look_is_kept(planted, tmp_path):
    module = choice_of(planted)
    train(module, tmp_path, planted)
    assert (module.best_choice == planted[4]).float().mean() > 0.8
    first = choice_of(planted).look(torch.zeros_like(planted[4]))
    assert module.best_loss < first / 2
    assert module.look(module.best_choice) == pytest.approx(module.best_loss)


def test_the_first_order_is_kept_where_no_other_is_better(planted, tmp_path):
    model, sites, masks, texts, _ = planted
    whole = {name: torch.ones_like(mask) for name, mask in masks[0].items()}
    module = choice_of((model, sites, [whole, masks[1]], texts, None))
    train(module, tmp_path, planted)
    assert module.best_loss == pytest.approx(0, abs=1e-6) and not module.best_choice.any()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_layer_that_reads_several_sites_takes_the_columns_of_each(family):
    """Heads have sites of their own in `free`; gpt2 stores its weights transposed."""
    model = tiny_model(family)
    layers, sites = prunable_layers(model), free_sites(model)
    right = torch.randint(2, (len(sites),), generator=torch.Generator().manual_seed(1))
    masks = [
        {name: torch.zeros_like(layer.read(), dtype=torch.bool) for name, layer in layers.items()}
        for _ in range(2)
    ]
    for site, number in zip(sites, right.tolist(), strict=True):
        for member in site.members:
            masks[number][member.layer][:, member.columns.reshape(-1)] = True
    texts = torch.randint(3, 200, (2, 24), generator=torch.Generator().manual_seed(2))
    module = choice_of((model, sites, masks, texts, right))
    share = torch.nn.functional.one_hot(right, 2).float()
    assert float(module.loss(texts, share)) == pytest.approx(0, abs=1e-6)
    assert float(module.loss(texts, 1 - share)) > 0.001
