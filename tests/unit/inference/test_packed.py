"""Packed linear layers compute what they replace."""

import pytest
import torch
from processor import needs_bfloat16_kernels

from effllm.modules.decoding.drafts import first_layers
from effllm.modules.inference.packed import PackedLinear, pack_linears
from effllm.modules.inference.runner import ModelRunner
from effllm.modules.modeling.tiny import tiny_model


@needs_bfloat16_kernels
@pytest.mark.parametrize("family", ["llama", "opt", "qwen2"])
def test_a_packed_model_gives_the_same_logits(family):
    plain, packed = (tiny_model(family).to(torch.bfloat16) for _ in range(2))
    assert pack_linears(packed) > 0
    runners = [ModelRunner(plain), ModelRunner(packed)]
    for tokens in ([65, 66, 67], [68], [69, 70, 71, 72, 73]):
        first, second = (runner.advance(tokens) for runner in runners)
        torch.testing.assert_close(first, second, rtol=2e-2, atol=2e-2)


@needs_bfloat16_kernels
@pytest.mark.parametrize("bias", [False, True])
def test_layers_of_one_input_are_right_in_any_order(generator, bias):
    attention = torch.nn.Module()
    for name, rows in {"q_proj": 24, "k_proj": 8, "v_proj": 16}.items():
        setattr(attention, name, torch.nn.Linear(16, rows, bias=bias).to(torch.bfloat16))
    plain = dict(attention.named_children())
    assert pack_linears(attention) == 3
    first, second = torch.randn(2, 5, 16, generator=generator).to(torch.bfloat16)
    order = [("q_proj", first), ("k_proj", first), ("k_proj", first), ("v_proj", second)]
    order += [("q_proj", second), ("k_proj", second), ("q_proj", first), ("v_proj", first)]
    for name, inputs in order:
        found = getattr(attention, name)(inputs)
        torch.testing.assert_close(found, plain[name](inputs), rtol=2e-2, atol=2e-2)
    inputs = torch.ones(1, 16, dtype=torch.bfloat16)
    attention.q_proj(inputs)
    inputs += 1  # the same tensor with other values
    torch.testing.assert_close(attention.k_proj(inputs), plain["k_proj"](inputs))


@needs_bfloat16_kernels
def test_a_finished_pass_keeps_no_activations():
    model = tiny_model("llama").to(torch.bfloat16)
    pack_linears(model)
    ModelRunner(model).advance([65, 66, 67])
    packed = [one for one in model.modules() if isinstance(one, PackedLinear)]
    assert all(one._product._product is None for one in packed)


@needs_bfloat16_kernels
def test_first_layers_share_packed_weights():
    model = tiny_model("llama").to(torch.bfloat16)
    pack_linears(model)
    shallow = first_layers(model, 1)
    assert shallow.get_output_embeddings() is model.get_output_embeddings()
    assert isinstance(shallow.get_output_embeddings(), PackedLinear)
    assert ModelRunner(shallow).advance([65]).shape == (1, 259)


def test_other_precisions_are_left_alone(tiny_llama):
    assert pack_linears(tiny_llama) == 0
    assert not any(isinstance(one, PackedLinear) for one in tiny_llama.modules())


def test_without_kernels_layers_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = tiny_model("llama").to(torch.bfloat16)
    assert pack_linears(model) == 0
    assert not any(isinstance(one, PackedLinear) for one in model.modules())
