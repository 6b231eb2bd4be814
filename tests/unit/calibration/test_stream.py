"""Streaming a model block by block equals running it whole; pruning propagates."""

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from effllm.modules.calibration.statistics import Gram
from effllm.modules.calibration.stream import BlockStream
from effllm.modules.errors import ConfigError, NumericalError, UnsupportedModelError
from effllm.modules.modeling.blocks import (
    LinearLayer,
    decoder_blocks,
    linear_layers,
    prunable_layers,
)
from effllm.modules.modeling.tiny import VOCABULARY, tiny_model
from effllm.modules.sparsity.patterns import Grouped, Unstructured
from effllm.modules.sparsity.pruners import Magnitude, RelativeImportancePruner, SparseGPT, Wanda
from effllm.modules.sparsity.sequential import check_pattern, prune_block

TWO_OF_FOUR = Grouped(keep=2, group=4)


@pytest.fixture
def windows(generator):
    return torch.randint(3, VOCABULARY, (5, 24), generator=generator)


def block_inputs(model, windows):
    """Inputs of every block, and outputs of the last, from the model's own forward pass."""
    seen, handles = [], []
    blocks = decoder_blocks(model)
    for block in blocks:
        handles.append(block.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
    last = lambda _, args, out: seen.append(out[0] if isinstance(out, (tuple, list)) else out)  # noqa: E731
    handles.append(blocks[-1].register_forward_hook(last))
    with torch.no_grad():
        model(windows, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("batch_size", [1, 3])
def test_streaming_equals_the_whole_model(any_model, windows, batch_size):
    expected = block_inputs(any_model, windows)
    stream = BlockStream(any_model, windows, batch_size)
    for index in range(len(stream.blocks)):
        torch.testing.assert_close(torch.cat(stream.hidden), expected[index], rtol=1e-5, atol=1e-5)
        stream.advance()
    torch.testing.assert_close(torch.cat(stream.hidden), expected[-1], rtol=1e-5, atol=1e-5)


NARROW = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4}
OLD = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4}
NEW = NARROW | {"intermediate_size": 48, "num_hidden_layers": 2}
SLIDING = NEW | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}
# Ways to hand arguments on: ALiBi by window and head, by position, masks by kind of layer, …
MORE_FAMILIES = {
    "bloom": transformers.BloomConfig(**OLD | {"hidden_size": 32}),
    "falcon": transformers.FalconConfig(**NARROW, num_hidden_layers=2),
    "falcon with alibi": transformers.FalconConfig(**NARROW, num_hidden_layers=2, alibi=True),
    "mpt": transformers.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4),
    "gpt_neox": transformers.GPTNeoXConfig(**NEW),
    "gptj": transformers.GPTJConfig(**OLD, rotary_dim=4),
    "gpt_neo": transformers.GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_heads=4, num_layers=2, window_size=8,
        attention_types=[[["global", "local"], 1]],
    ),
    "gpt_bigcode": transformers.GPTBigCodeConfig(**OLD),
    "openai-gpt": transformers.OpenAIGPTConfig(**OLD),
    "codegen": transformers.CodeGenConfig(**OLD, rotary_dim=4),
    "phi": transformers.PhiConfig(**NEW),
    "phi3": transformers.Phi3Config(**NEW, pad_token_id=2),
    "stablelm": transformers.StableLmConfig(**NEW, num_key_value_heads=2),
    "gemma2": transformers.Gemma2Config(**SLIDING),
    "gemma3": transformers.Gemma3TextConfig(
        **SLIDING, layer_types=["sliding_attention", "full_attention"]
    ),
    "olmo2": transformers.Olmo2Config(**NEW),
    "starcoder2": transformers.Starcoder2Config(**NEW, num_key_value_heads=2, sliding_window=8),
    "cohere2": transformers.Cohere2Config(**SLIDING),
    "smollm3": transformers.SmolLM3Config(**NEW, num_key_value_heads=2, pad_token_id=2),
    "xglm": transformers.XGLMConfig(
        vocab_size=VOCABULARY, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4
    ),
}  # fmt: skip


@pytest.mark.parametrize("config", MORE_FAMILIES.values(), ids=MORE_FAMILIES.keys())
def test_other_families_stream_as_the_whole_model(config, windows):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    expected = block_inputs(model, windows)
    for batch_size in (1, 2, 3, 5):
        stream = BlockStream(model, windows, batch_size)
        for inputs in expected[:-1]:
            torch.testing.assert_close(torch.cat(stream.hidden), inputs, rtol=1e-5, atol=1e-5)
            stream.advance()
        torch.testing.assert_close(torch.cat(stream.hidden), expected[-1], rtol=1e-5, atol=1e-5)
    one = BlockStream(model, windows[:1], 4)
    one.advance()
    torch.testing.assert_close(one.hidden[0], expected[1][:1], rtol=1e-5, atol=1e-5)


def test_arguments_are_repeated_for_every_window(windows):
    """Bloom's ALiBi has a row per window and head: without them a batch of three breaks."""
    model = AutoModelForCausalLM.from_config(MORE_FAMILIES["bloom"]).eval()
    grams = [BlockStream(model, windows, size).collect(Gram) for size in (1, 3)]
    for name, gram in grams[0].items():
        torch.testing.assert_close(grams[1][name], gram, rtol=1e-4, atol=1e-5)


class _Told(nn.Module):
    """A block that is handed the token ids, as models with an embedding for every layer do."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden, tokens, **kwargs):
        return self.block(hidden + 0.01 * tokens[..., None], **kwargs)


def test_blocks_that_are_told_the_text_are_refused(windows):
    """Their arguments hold for the first window alone; others would be measured wrongly."""
    model = tiny_model("llama")
    model.model.layers = nn.ModuleList(_Told(block) for block in model.model.layers)
    told = {}
    model.register_forward_pre_hook(
        lambda _, args, kwargs: told.update(tokens=kwargs["input_ids"]), with_kwargs=True
    )
    for block in model.model.layers:
        block.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, **told}), with_kwargs=True
        )
    with pytest.raises(UnsupportedModelError, match=r"\(tokens\) depends on the text"):
        BlockStream(model, windows, 2)
    told.clear()
    assert len(BlockStream(model, windows[:1], 2).hidden) == 1


@pytest.mark.parametrize("change", ["scaled", "skipped"])
def test_blocks_that_are_not_a_plain_row_are_refused(change, windows):
    model = tiny_model("llama")
    first, second = model.model.layers
    if change == "scaled":  # between the blocks
        second.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    else:
        first.forward = lambda hidden, **kwargs: second(hidden, **kwargs)
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM: .*block"):
        BlockStream(model, windows, 2)


def test_collecting_leaves_no_trace(any_model, windows):
    before = any_model(windows).logits
    stream = BlockStream(any_model, windows, 2)
    stream.collect(Gram)
    assert stream.index == 0
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in any_model.modules())
    assert torch.equal(any_model(windows).logits, before)


def test_layers_with_the_same_input_are_grouped(windows):
    groups = {
        family: BlockStream(tiny_model(family), windows, 2).groups()
        for family in ("llama", "opt", "gpt2")
    }
    attention = [f"self_attn.{name}_proj" for name in "qkv"]
    assert [sorted(group) for group in groups["llama"]] == [
        sorted(attention),
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]
    assert len(groups["opt"]) == 4 and len(groups["opt"][0]) == 3
    assert groups["gpt2"] == [["attn.c_attn"], ["attn.c_proj"], ["mlp.c_fc"], ["mlp.c_proj"]]


def test_statistics_do_not_depend_on_the_batches(any_model, windows):
    grams = [BlockStream(any_model, windows, size).collect(Gram) for size in (1, 5)]
    for name, gram in grams[0].items():
        torch.testing.assert_close(grams[1][name], gram, rtol=1e-4, atol=1e-5)


def test_the_second_block_sees_the_pruned_first_block(windows):
    model = tiny_model("llama")
    dense = BlockStream(model, windows, 2).collect(Gram, advance=True)
    stream = BlockStream(model, windows, 2)
    prune_block(stream, SparseGPT(), TWO_OF_FOUR)
    second = stream.collect(Gram)["self_attn.q_proj"]
    # The same pruned model, streamed afresh.
    fresh = BlockStream(model, windows, 2)
    fresh.advance()
    torch.testing.assert_close(fresh.collect(Gram)["self_attn.q_proj"], second)
    untouched = BlockStream(tiny_model("llama"), windows, 2)
    untouched.advance()
    other = untouched.collect(Gram)["self_attn.q_proj"]
    assert float((other - second).norm() / second.norm()) > 0.01
    assert dense.keys() == {layer.name for layer in stream.layers()}


def test_true_sequential_measures_after_the_layers_before(windows):
    results = {}
    for true_sequential in (False, True):
        model = tiny_model("llama")
        stream = BlockStream(model, windows, 5)
        prune_block(stream, SparseGPT(), TWO_OF_FOUR, true_sequential=true_sequential)
        results[true_sequential] = {k: v.read().clone() for k, v in prunable_layers(model).items()}
    assert torch.equal(results[False]["0.self_attn.q_proj"], results[True]["0.self_attn.q_proj"])
    assert not torch.equal(
        results[False]["0.self_attn.o_proj"], results[True]["0.self_attn.o_proj"]
    )


@pytest.mark.parametrize(
    "pruner", [Magnitude(), Wanda(), RelativeImportancePruner(), SparseGPT()], ids=lambda p: p.name
)
@pytest.mark.parametrize("pattern", [TWO_OF_FOUR, Unstructured(ratio=0.5)], ids=lambda p: p.name)
def test_every_family_is_pruned_exactly_and_only_inside_its_blocks(
    any_model, windows, pruner, pattern
):
    inside = {id(layer.module.weight) for layer in prunable_layers(any_model).values()}
    outside = {n: p.clone() for n, p in any_model.named_parameters() if id(p) not in inside}
    stream = BlockStream(any_model, windows, 3)
    for _ in range(len(stream.blocks)):
        record = prune_block(stream, pruner, pattern)
        assert all(int(mask.sum()) * 2 == mask.numel() for mask in record.masks.values())
    for layer in prunable_layers(any_model).values():
        assert float((layer.read() == 0).float().mean()) == 0.5
    for name, value in any_model.named_parameters():
        assert name not in outside or torch.equal(outside[name], value)


def test_a_transposed_layer_is_pruned_like_its_linear_twin(windows, generator):
    weight = torch.randn(6, 8, generator=generator)
    linear, conv = nn.Linear(8, 6), Conv1D(6, 8)
    linear.weight.data.copy_(weight)
    conv.weight.data.copy_(weight.T)
    for module in (linear, conv):
        layer = LinearLayer("twin", module)
        assert layer.columns == 8
        layer.write(Magnitude().prune(layer.read(), None, TWO_OF_FOUR).weight)
    assert torch.equal(conv.weight.T, linear.weight)
    inputs = torch.randn(3, 8, generator=generator)
    torch.testing.assert_close(conv(inputs) + linear.bias, linear(inputs))


def test_not_finite_activations_name_the_block_and_layer(windows):
    model = tiny_model("llama")
    prunable_layers(model)["1.self_attn.v_proj"].read()[0, 0] = float("inf")
    stream = BlockStream(model, windows, 5)
    prune_block(stream, Wanda(), TWO_OF_FOUR)
    with pytest.raises(NumericalError, match=r"block 1, layer self_attn\.o_proj"):
        prune_block(stream, Wanda(), TWO_OF_FOUR)


def test_a_pattern_that_does_not_fit_names_the_layer(tiny_llama):
    with pytest.raises(ConfigError, match=r"0\.self_attn\.q_proj: 64 inputs do not divide"):
        check_pattern(tiny_llama, Grouped(keep=3, group=5))


def test_other_architectures_are_refused_by_name():
    from transformers import AutoModelForCausalLM, MambaConfig, MixtralConfig

    mixtral = AutoModelForCausalLM.from_config(
        MixtralConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=2,
        )
    )
    with pytest.raises(UnsupportedModelError, match="MixtralForCausalLM.*no linear layers"):
        prunable_layers(mixtral)
    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, state_size=4)
    )
    with pytest.raises(UnsupportedModelError, match="MambaForCausalLM"):
        linear_layers(mamba, decoder_blocks(mamba)[0])


def test_a_model_without_blocks_is_refused(tiny_llama):
    tiny_llama.model.layers = nn.ModuleList()
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM"):
        decoder_blocks(tiny_llama)


@pytest.mark.parametrize("pruner", [Magnitude(), Wanda(), SparseGPT()], ids=lambda p: p.name)
def test_pruning_along_an_order_is_pruning_the_ordered_matrix(windows, generator, pruner):
    order = torch.randperm(64, generator=generator)
    model, other = tiny_model("llama"), tiny_model("llama")
    stream, along = BlockStream(model, windows, 5), BlockStream(other, windows, 5)
    names = {layer.name: torch.arange(layer.columns) for layer in stream.layers()}
    ordered = {**names, "self_attn.o_proj": order}
    plain, record = (
        prune_block(stream, pruner, TWO_OF_FOUR),
        prune_block(along, pruner, TWO_OF_FOUR, orders=ordered),
    )
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        assert torch.equal(plain.masks[name], record.masks[name])
    mask = record.masks["self_attn.o_proj"]
    groups = mask[:, order].reshape(len(mask), -1, 4).sum(dim=2)
    assert torch.equal(groups, torch.full_like(groups, 2))
    assert not torch.equal(mask, plain.masks["self_attn.o_proj"])
