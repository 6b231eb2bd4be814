"""Learning an order: where it starts, what it keeps, and that it helps."""

import pytest
import torch

from effllm.modules.calibration.statistics import Gram
from effllm.modules.calibration.stream import BlockStream
from effllm.modules.modeling.blocks import prunable_layers
from effllm.modules.modeling.tiny import tiny_model
from effllm.modules.permutation.learning import (
    LayerLearning,
    LearnableOrder,
    Matching,
    ModelLearning,
)
from effllm.modules.permutation.problem import Part, Problem
from effllm.modules.permutation.search import BestOfRandom
from effllm.modules.permutation.sites import gather_sites
from effllm.modules.sparsity.patterns import Grouped
from effllm.modules.training import fit

TWO_OF_FOUR = Grouped(keep=2, group=4)


def matching(mode="counterfactual", groups=None, block_size=16, noise=0.1):
    return Matching(mode=mode, groups=groups, block_size=block_size, first_temperature=1.0,
                    last_temperature=0.1, noise=noise)  # fmt: skip


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def layer_problem(seed=0):
    generator = draw(seed)
    weight = torch.randn(48, 32, generator=generator) * torch.randn(32, generator=generator).exp()
    tokens = torch.randn(256, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    grams = [half.T @ half / len(half) for half in tokens.split(128)]
    part = Part(weight, weight.abs() * grams[0].diagonal().sqrt(), grams[0])
    return Problem([part], TWO_OF_FOUR), [grams[1]]


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=3e-2, weight_decay=0.0)


def learner(problem, heldout, steps, mode="counterfactual"):
    order = LearnableOrder(torch.arange(32), (1, 32), 0.1, draw())
    return LayerLearning(problem, heldout, order, matching(mode), adam, steps, 5)


def learn(module, folder, steps):
    fit(module, folder, epochs=1, accelerator="cpu", tensors=[torch.arange(steps)])
    return module


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_learning_starts_at_the_order_it_is_given(noise):
    first = torch.randperm(32, generator=draw(3))
    order = LearnableOrder(first, (2, 16), noise, draw())
    from effllm.modules.permutation.orders import canonical

    assert torch.equal(order.hardened(TWO_OF_FOUR), canonical(first, 4))


def test_held_out_text_chooses_and_the_start_is_among_the_choices(tmp_path):
    for seed in range(3):
        problem, heldout = layer_problem(seed)
        module = learn(learner(problem, heldout, 60), tmp_path / str(seed), 60)
        before = problem.error(torch.arange(32), heldout)
        found = problem.error(module.best_order, heldout)
        assert found == pytest.approx(float(module.best_error))
        assert found <= before


def test_counterfactual_learning_beats_random_orders(tmp_path):
    """Ten layers, one sided sign test: nine of ten has p = 0.011, ten p = 0.001."""
    wins = 0
    for seed in range(10):
        problem, heldout = layer_problem(seed)
        module = learn(learner(problem, heldout, 100), tmp_path / str(seed), 100)
        random = BestOfRandom(samples=100).find(problem, draw(seed))
        wins += problem.error(module.best_order, heldout) < problem.error(random, heldout)
    assert wins >= 9, wins


def test_an_entrys_own_share_in_the_gradient_hides_the_moves(tmp_path):
    """Without the curvature of the layer's error, learning from the identity finds far less."""
    ratios = []
    for seed in range(3):
        problem, _ = layer_problem(seed)
        order = LearnableOrder(torch.arange(32), (1, 32), 0.1, draw())
        blind = LearnableOrder(torch.arange(32), (1, 32), 0.1, draw())
        errors = []
        for one, known in ((order, 2 / problem.output), (blind, None)):
            optimizer, best = adam(one.parameters()), problem.error(torch.arange(32))
            for step in range(60):
                (pruned,) = one.prune(
                    problem.parts, TWO_OF_FOUR, "counterfactual", 2.0 * 0.25 ** (step / 59),
                    curvature=known,
                )  # fmt: skip
                part = problem.parts[0]
                lost = pruned - part.weight
                optimizer.zero_grad()
                ((lost @ part.gram * lost).sum() / problem.output).backward()
                optimizer.step()
                best = min(best, problem.error(one.hardened(TWO_OF_FOUR)))
            errors.append(best)
        ratios.append(errors[0] / errors[1])
    assert max(ratios) < 1, ratios


def model_learner(mode, loss, noise=0.0, groups=4, steps=2):
    model = tiny_model("llama")
    windows = torch.arange(3, 67).reshape(2, 32)
    stream = BlockStream(model, windows, 2)
    grams: dict[str, torch.Tensor] = {}
    for index in range(len(stream.blocks)):
        grams |= {f"{index}.{k}": v for k, v in stream.collect(Gram, advance=True).items()}
    layers = prunable_layers(model)
    sites = gather_sites(stream.all_groups(), {k: v.columns for k, v in layers.items()})
    problems, orders = [], []
    for site in sites:
        parts = [
            Part(layers[m.layer].read().float(),
                 layers[m.layer].read().abs() * grams[m.layer].diagonal().sqrt(), grams[m.layer])
            for m in site.members
        ]  # fmt: skip
        problems.append(Problem(parts, TWO_OF_FOUR))
        form = matching(mode, groups=groups, block_size=None, noise=noise)
        blocks = form.blocks(site.columns, TWO_OF_FOUR, site.name)
        orders.append(LearnableOrder(torch.arange(site.columns), blocks, noise, draw()))
    module = ModelLearning(model, sites, problems, orders, form, loss, 1e-5, adam, steps)
    return module, model, windows


@pytest.mark.parametrize("loss", ["next_token", "hidden_state"])
@pytest.mark.parametrize("mode", ["soft", "ste_mask", "counterfactual"])
def test_the_whole_model_trains_its_orders_and_nothing_else(mode, loss, tmp_path):
    module, model, windows = model_learner(mode, loss)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    costs = [order.costs.detach().clone() for order in module.orders]
    fit(module, tmp_path, epochs=2, accelerator="cpu", tensors=[windows], batch_size=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(
        not torch.equal(old, order.costs) for old, order in zip(costs, module.orders, strict=True)
    )
    assert set(module.state_dict()) == {
        f"orders.{n}.{name}" for n in range(len(costs)) for name in ("costs", "first")
    }


def test_before_the_first_step_hard_orders_are_the_plain_pruner(tmp_path):
    """The paper's epoch 0 equals Wanda: to the bit."""
    module, model, _ = model_learner("counterfactual", "next_token")
    weights, _ = module.pruned_weights(1.0)
    layers = prunable_layers(model)
    for site, problem in zip(module.sites, module.problems, strict=True):
        for member, part in zip(site.members, problem.parts, strict=True):
            mask = TWO_OF_FOUR.mask(part.score, scope="row")
            assert torch.equal(weights[member.layer], layers[member.layer].read() * mask)


def test_an_interrupted_learning_ends_the_same(tmp_path):
    whole, _, windows = model_learner("soft", "next_token", steps=4)
    options = {"accelerator": "cpu", "tensors": [windows], "batch_size": 1}
    fit(whole, tmp_path / "whole", epochs=2, **options)
    first, _, _ = model_learner("soft", "next_token", steps=4)
    fit(first, tmp_path / "parts", epochs=1, **options)
    second, _, _ = model_learner("soft", "next_token", steps=4)
    fit(second, tmp_path / "parts", epochs=2, **options)
    for one, two in zip(whole.orders, second.orders, strict=True):
        assert torch.equal(one.costs, two.costs)
