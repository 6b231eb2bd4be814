"""Drafters: what each may see, what it is at the start, and what it reduces to."""

import pytest
import torch
from transformers import LlamaConfig

from effllm.modules.errors import UnsupportedModelError
from effllm.modules.heads.amphista import Amphista
from effllm.modules.heads.medusa import Medusa, MedusaToken
from effllm.modules.inference.cache import SlotCache
from effllm.modules.modeling.tiny import tiny_config, tiny_model

HEADS = 4
DRAFTERS = [
    (Medusa, {}),
    (Medusa, {"layers": 3}),
    (MedusaToken, {}),
    (Amphista, {}),
    (Amphista, {"heads": 3, "sa_layers": 1}),
    (Amphista, {"sa_layers": 0}),
    (Amphista, {"ae_layers": 0}),
    (Amphista, {"ae_position": "before_mlp"}),
    (Amphista, {"reads_token": False}),
]


def name_of(case):
    cls, settings = case
    return "-".join([cls.__name__, *(f"{key}={value}" for key, value in settings.items())])


@pytest.fixture(params=DRAFTERS, ids=name_of)
def drafter(request):
    cls, settings = request.param
    torch.manual_seed(0)
    return cls(tiny_config("llama"), **settings)


@pytest.fixture
def states(generator):
    """(B, T, C) hidden states and embeddings."""
    return [torch.randn(2, 9, 64, generator=generator) for _ in range(2)]


def shaken(drafter, seed=1):
    """The drafter away from its start, so that every part has a say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return drafter


def test_at_the_start_every_head_says_what_the_target_says(drafter, states):
    hidden, embedded = states
    vectors = drafter(hidden, embedded)
    assert vectors.shape == (2, 9, drafter.heads, 64)
    assert torch.equal(vectors, hidden[:, :, None].expand_as(vectors))


def test_without_the_identity_start_they_do_not(states):
    hidden, embedded = states
    vectors = Amphista(tiny_config("llama"), identity_start=False)(hidden, embedded)
    assert not torch.allclose(vectors[:, :, 0], hidden, atol=0.1)


def test_every_parameter_is_taught_something(drafter, states):
    shaken(drafter)(*states).square().sum().backward()
    idle = [name for name, one in drafter.named_parameters() if one.grad is None]
    assert not idle
    assert all(one.grad.abs().sum() > 0 for one in drafter.parameters())


def test_no_position_sees_a_later_one(drafter, states):
    hidden, embedded = states
    shaken(drafter).eval()
    before = drafter(hidden, embedded)
    changed = [one.clone() for one in states]
    for one in changed:
        one[:, 5:] += 1.0  # h_5, x_6 and what follows
    after = drafter(*changed)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert (after[:, 5:] - before[:, 5:]).abs().amin(dim=(0, 1)).max() > 1e-4


def test_only_some_drafters_read_the_chosen_token(drafter, states):
    hidden, embedded = states
    shaken(drafter).eval()
    before, after = drafter(hidden, embedded), drafter(hidden, embedded + 1.0)
    assert drafter.reads_token == (not torch.equal(before, after))


def test_only_staged_drafters_look_back(drafter, states):
    hidden, embedded = states
    shaken(drafter).eval()
    earlier = hidden.clone()
    earlier[:, 0] += 1.0
    moved = (drafter(earlier, embedded) - drafter(hidden, embedded))[:, 1:].abs().max() > 1e-5
    assert drafter.reads_text == bool(moved)


def test_amphista_without_its_parts_is_medusa(states):
    config = tiny_config("llama")
    medusa, bare = Medusa(config), Amphista(config, sa_layers=0, ae_layers=0)
    shaken(medusa)
    mine, theirs = list(bare.parameters()), list(medusa.parameters())
    assert [one.shape for one in mine] == [one.shape for one in theirs]
    with torch.no_grad():
        for one, other in zip(mine, theirs, strict=True):
            one.copy_(other)
    assert torch.equal(bare(*states), medusa(*states))


def test_heads_of_the_encoder_see_each_other_and_no_other_position(generator):
    drafter = shaken(Amphista(tiny_config("llama"))).eval()
    vectors = torch.randn(5, HEADS, 64, generator=generator)
    changed = vectors.clone()
    changed[2, 3] += torch.linspace(-1, 1, 64)  # a constant would be normalised away
    moved = (drafter._exchange(changed) - drafter._exchange(vectors)).abs().amax(dim=-1)
    assert (moved[2] > 1e-5).all() and not moved[[0, 1, 3, 4]].any()


def test_without_places_the_encoder_does_not_tell_heads_apart(generator):
    drafter = shaken(Amphista(tiny_config("llama"))).eval()
    torch.nn.init.zeros_(drafter.places)
    vectors, order = torch.randn(5, HEADS, 64, generator=generator), [2, 0, 3, 1]
    torch.testing.assert_close(
        drafter._exchange(vectors[:, order]), drafter._exchange(vectors)[:, order]
    )


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("layers", [1, 2])
def test_features_may_be_made_a_few_positions_at_a_time(family, layers, generator):
    drafter = shaken(Amphista(tiny_config(family), sa_layers=layers)).eval()
    hidden, embedded = (torch.randn(1, 23, 64, generator=generator) for _ in range(2))
    whole = drafter.adapt(hidden, embedded)
    cache, parts, start = SlotCache(layers), [], 0
    for count in (7, 1, 3, 1, 1, 5, 2, 3):
        part = slice(start, start + count)
        parts.append(drafter.adapt(hidden[:, part], embedded[:, part], cache))
        start += count
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_the_staged_blocks_are_of_the_targets_family():
    for family in ("llama", "qwen3"):
        blocks = Amphista(tiny_config(family)).staged.blocks
        target = tiny_model(family).model.layers[0]
        assert type(blocks[0]) is type(target)
        assert {k: v.shape for k, v in blocks[0].state_dict().items()} == {
            k: v.shape for k, v in target.state_dict().items()
        }


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_targets_without_rotary_positions_are_refused(family):
    with pytest.raises(UnsupportedModelError, match="rotary positions.*sa_layers=0"):
        Amphista(tiny_config(family))


def test_the_large_medusa_is_as_large_as_amphista():
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3
    )
    medusa, amphista = (
        sum(one.numel() for one in drafter.parameters())
        for drafter in (Medusa(config, layers=10), Amphista(config))
    )
    assert amphista == pytest.approx(12.84e6, rel=1e-3)  # counted by hand in the specification
    assert 1.0 <= medusa / amphista <= 1.05
