"""Smaller models say the same as dense ones with zeros, and load on their own."""

import copy
import subprocess
import sys

import pytest
import torch
from compiled import needs_compiler
from transformers import DynamicCache

from effllm.modules.errors import ConfigError, UnsupportedModelError
from effllm.modules.inference import attention
from effllm.modules.inference.fast_path import speed_up
from effllm.modules.inference.runner import ModelRunner
from effllm.modules.modeling.blocks import decoder_blocks
from effllm.modules.modeling.checkpoints import load_any, load_tokenizer, save_code
from effllm.modules.modeling.tiny import byte_tokenizer, tiny_model
from effllm.modules.structural.compact import compact_model, install, stock_model
from effllm.modules.structural.sizes import (
    cache_bytes_per_token,
    count_parameters,
    sublayer_size,
)
from effllm.modules.structural.units import (
    Kept,
    key_matrix,
    padded,
    sublayers,
    uniform_removals,
    uniform_targets,
)

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "opt", "opt_post_norm"]
NEURONS = list(range(128))
# Units that stay: attention and feed-forward of block 0, then of block 1.
PLANS = {
    "uneven": [[0, 1, 3], [1, 2, 70], [2], NEURONS],
    "heads_of_one_group": [[0, 1], NEURONS[:64], [2, 3], NEURONS[64:]],
    "no_attention_in_front": [[], [5, 9, 100], [0, 1, 2, 3], [7]],
    "no_feed_forward": [[3], [], [0, 2], NEURONS[::3]],
    "nothing_in_one_block": [[0, 1, 2, 3], NEURONS, [], []],
}


def kept_of(model, plan, *, bias=False):
    """The plan's units with changed weights, and an extra bias if wanted."""
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for layer, units in zip(sublayers(model), plan, strict=True):
        chosen = torch.tensor(units, dtype=torch.long)
        weight = 0.3 * torch.randn(64, len(units) * layer.size, generator=generator)
        extra = torch.randn(64, generator=generator) if bias else None
        kept[layer.name] = Kept(chosen, weight, extra)
    return kept


def both(family, plan, **options):
    """The dense model with zeros, and the compact one."""
    model = tiny_model(family)
    kept = kept_of(model, PLANS[plan], **options)
    compact = compact_model(model, sublayers(model), kept)
    for layer in sublayers(model):
        install(model, layer, kept[layer.name])
    return model, compact


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_equal_the_dense_model_with_zeros(family, plan):
    masked, compact = both(family, plan, bias=plan == "uneven")
    ids = torch.randint(3, 250, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[0, :5] = mask[1, :2] = 0
    whole = [one(ids, attention_mask=mask).logits for one in (masked, compact)]
    torch.testing.assert_close(whole[0][mask.bool()], whole[1][mask.bool()], rtol=1e-5, atol=1e-5)
    stepped = []
    for model in (masked, compact):
        cache = DynamicCache(config=model.config)
        steps = [
            model(ids[:1, n : n + 1], past_key_values=cache, use_cache=True).logits
            for n in range(20)
        ]
        stepped.append(torch.cat(steps, dim=1))
    torch.testing.assert_close(stepped[0], stepped[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stepped[1], compact(ids[:1]).logits, rtol=1e-4, atol=1e-4)
    assert count_parameters(compact)[0] < count_parameters(masked)[0]


@pytest.mark.parametrize("plan", ["uneven", "no_attention_in_front"])
@torch.no_grad()
def test_our_runner_rolls_back_and_generation_agrees(plan):
    masked, compact = both("llama", plan)
    prompt = list(range(40, 60))
    runner = ModelRunner(compact)
    first = runner.advance(prompt)
    runner.rollback_to(5)
    torch.testing.assert_close(runner.advance(prompt[5:]), first[5:], rtol=1e-5, atol=1e-5)
    ids = torch.tensor([prompt, prompt[::-1]])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    given = [one.generate(ids, **options) for one in (masked, compact)]
    assert torch.equal(*given)


@needs_compiler
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@torch.no_grad()
def test_compiled_steps_know_uneven_blocks(family, plan):
    _, compact = both(family, plan)
    tokens = list(range(40, 190))
    expected = ModelRunner(compact).advance(tokens)
    assert speed_up(compact).kind == "compiled"
    runner = ModelRunner(compact)
    torch.testing.assert_close(runner.advance(tokens), expected, rtol=1e-5, atol=1e-5)
    runner.rollback_to(70)
    torch.testing.assert_close(runner.advance(tokens[70:71]), expected[70:71], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_uneven_groups_are_read_without_copies_of_keys(monkeypatch):
    """Three heads over two key heads: tokens, chains and trees; other functions still copy."""
    _, compact = both("llama", "uneven")
    ids = torch.randint(3, 250, (1, 20), generator=torch.Generator().manual_seed(0))
    whole = compact(ids).logits[0]
    read = []
    own = attention.F.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F,
        "scaled_dot_product_attention",
        lambda query, key, *args, **kwargs: (
            read.append(key.shape[1]) or own(query, key, *args, **kwargs)
        ),
    )
    runner, tokens = ModelRunner(compact), ids[0].tolist()
    runner.advance(tokens[:12], rows=1)
    read.clear()
    torch.testing.assert_close(runner.advance(tokens[12:13])[0], whole[12], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(runner.advance(tokens[13:16]), whole[13:16], rtol=1e-5, atol=1e-5)
    logits = runner.advance([tokens[16], 7, tokens[17]], parents=[-1, 0, 0])
    torch.testing.assert_close(logits[[0, 2]], whole[16:18], rtol=1e-5, atol=1e-5)
    assert set(read) == {1, 2}  # the second block has one head
    compact.set_attn_implementation("sdpa")
    torch.testing.assert_close(compact(ids).logits[0], whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt"])
@torch.no_grad()
def test_saved_models_load_equal_with_as_many_parameters(family, tmp_path):
    _, compact = both(family, "uneven", bias=True)
    compact.save_pretrained(tmp_path)
    save_code(compact, tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = load_any(tmp_path, "float32")
    ids = torch.arange(3, 30)[None]
    assert torch.equal(loaded(ids).logits, compact(ids).logits)
    assert count_parameters(loaded) == count_parameters(compact)
    assert cache_bytes_per_token(loaded) == cache_bytes_per_token(compact)
    assert load_tokenizer(tmp_path).decode([80, 81]) == byte_tokenizer().decode([80, 81])


def test_a_plain_python_prompt_loads_and_generates(tmp_path):
    """With transformers alone: this package cannot be imported there."""
    _, compact = both("llama", "uneven")
    compact.save_pretrained(tmp_path / "model")
    save_code(compact, tmp_path / "model")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as M; "
        "m = M.from_pretrained(sys.argv[1], trust_remote_code=True); "
        "out = m.generate(torch.arange(3, 13)[None], max_new_tokens=4, do_sample=False); "
        "print(out.shape[1], type(m).__name__, 'effllm' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["CompactLlamaForCausalLM", "False"]


def test_cache_and_parameters_fall_with_key_value_heads():
    dense = tiny_model("llama")
    assert cache_bytes_per_token(dense) == 2 * 2 * 2 * 16 * 4  # blocks, k and v, heads, size, bytes
    _, compact = both("llama", "heads_of_one_group")
    assert cache_bytes_per_token(compact) == cache_bytes_per_token(dense) // 2
    gone = 2 * (32 * 64 + 16 * 64) + 3 * 64 * 64  # q, o, k, v and feed-forward of one block
    assert count_parameters(dense)[1] - count_parameters(compact)[1] == 2 * gone


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_of_sublayers_are_what_export_leaves(family, plan):
    model = tiny_model(family)
    kept, blocks, lost = kept_of(model, PLANS[plan]), decoder_blocks(model), 0
    for layer in sublayers(model):
        whole, left = (
            sublayer_size(blocks[layer.block], layer, units).parameters
            for units in (torch.arange(layer.units), kept[layer.name].units)
        )
        lost += whole - left
    compact = compact_model(model, sublayers(model), kept)
    assert count_parameters(model)[1] - count_parameters(compact)[1] == lost


def test_zero_columns_equal_a_masked_head():
    model = tiny_model("llama")
    layer = sublayers(model)[0]
    ids = torch.arange(3, 30)[None]
    weight = key_matrix(model, layer).read().clone()
    masked = copy.deepcopy(model)
    attention = decoder_blocks(masked)[0].self_attn

    def hide(module, args):
        hidden = args[0].clone()
        hidden[..., 16:32] = 0
        return (hidden,)

    attention.o_proj.register_forward_pre_hook(hide)
    units = torch.tensor([0, 2, 3])
    install(model, layer, Kept(units, weight[:, layer.channels(units)]))
    torch.testing.assert_close(model(ids).logits, masked(ids).logits)


@torch.no_grad()
def test_equal_blocks_of_whole_groups_become_a_stock_model(tmp_path):
    model = tiny_model("llama")
    layers = sublayers(model, "kv_group")
    plan = [[1], NEURONS[:48], [0], NEURONS[48:96]]
    kept = {}
    for layer, units in zip(layers, plan, strict=True):
        chosen = torch.tensor(units)
        kept[layer.name] = Kept(chosen, key_matrix(model, layer).read()[:, layer.channels(chosen)])
    stock = stock_model(model, layers, kept)
    assert type(stock) is type(model)
    stock.save_pretrained(tmp_path)
    assert "auto_map" not in (tmp_path / "config.json").read_text()
    ids = torch.arange(3, 30)[None]
    compact = compact_model(model, layers, kept)
    torch.testing.assert_close(load_any(tmp_path, "float32")(ids).logits, compact(ids).logits)


@pytest.mark.parametrize(
    ("family", "plan", "message"),
    [
        ("llama", "uneven", "needs equal blocks"),
        ("opt", "heads_of_one_group", "OPT cannot have fewer heads"),
    ],
)
def test_what_a_stock_model_cannot_say_is_refused(family, plan, message):
    model = tiny_model(family)
    with pytest.raises(ConfigError, match=message) as caught:
        stock_model(model, sublayers(model), kept_of(model, PLANS[plan]))
    assert "\n" not in str(caught.value)


def test_fused_projections_and_missing_weights_are_refused():
    with pytest.raises(UnsupportedModelError, match="fused projections"):
        sublayers(tiny_model("gpt2"))
    with pytest.raises(ConfigError, match="head or kv_group"):
        sublayers(tiny_model("llama"), "row")
    model = tiny_model("llama")
    kept = kept_of(model, PLANS["uneven"])
    del kept["block-001-ffn"]
    with pytest.raises(ConfigError, match="block-001-ffn; cannot export"):
        compact_model(model, sublayers(model), kept)


def test_a_family_without_a_compact_form_is_refused():
    model = tiny_model("llama")
    model.config.model_type = "other"
    with pytest.raises(UnsupportedModelError, match="other: no compact form"):
        compact_model(model, sublayers(model), kept_of(model, PLANS["uneven"]))


def test_padding_puts_columns_back():
    model = tiny_model("llama")
    layer = sublayers(model)[0]
    units = torch.tensor([1, 3])
    kept = Kept(units, torch.ones(64, 32))
    full = padded(layer, kept)
    assert full.shape == (64, 64)
    assert full.sum(dim=0).tolist() == [0] * 16 + [64] * 16 + [0] * 16 + [64] * 16


@pytest.mark.parametrize("units", range(1, 65))
@pytest.mark.parametrize("sparsity", [0.0, 0.125, 0.25, 0.375, 0.5])
def test_removed_units_sum_to_the_rounded_budget_and_are_spread_evenly(units, sparsity):
    for layers in (2, 3, 30):
        removed = uniform_removals([units] * layers, sparsity)
        assert sum(removed) == int(sparsity * units * layers + 0.5)
        assert max(removed) - min(removed) <= 1


def test_sparsities_that_leave_nothing_are_refused():
    layers = sublayers(tiny_model("llama"))
    with pytest.raises(ConfigError, match="0 <= sparsity < 1"):
        uniform_targets(layers, 1.0)
    with pytest.raises(ConfigError, match="removes all 8 units"):
        uniform_targets(layers, 0.95)
