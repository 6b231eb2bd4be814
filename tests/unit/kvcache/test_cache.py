"""A compressed cache inside tiny models: exact limits, oracles, and every change of shape."""

import pytest
import torch
from cache_methods import EVICTIONS, FORMATS
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from effllm.modules.errors import UnsupportedModelError
from effllm.modules.kvcache.attention import attached
from effllm.modules.kvcache.cache import CompressedCache
from effllm.modules.kvcache.compression import Compression
from effllm.modules.kvcache.eviction.base import Budget, Prefill
from effllm.modules.kvcache.eviction.methods import KeyNorm, SnapKV, StreamingLLM, Tova
from effllm.modules.kvcache.formats.base import Dense
from effllm.modules.kvcache.formats.integers import ChannelIntegers
from effllm.modules.kvcache.formats.pruned_values import PrunedValues
from effllm.modules.kvcache.formats.spark import SparkKeys
from effllm.modules.modeling.tiny import tiny_model

READINGS = ("packed", "sdpa", "eager")
FULL = ("llama", "qwen2", "opt", "gpt2")  # every layer sees everything
PACKED = Compression(keys=SparkKeys(ratio=0.75), protect_last=4)


def tokens_of(count, batch=1, seed=0):
    return torch.randint(3, 259, (batch, count), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def read(model, cache, ids, reading="packed", **options):
    with attached(model, reading):
        return model(ids, past_key_values=cache, **options).logits


def cache_of(model, method=PACKED, **options):
    return CompressedCache(model.config, method, **options)


@pytest.mark.parametrize("reading", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FULL)
def test_a_ratio_of_zero_gives_the_dense_logits_bit_for_bit(family, reading):
    model = tiny_model(family)
    model.set_attn_implementation(reading)
    ids = tokens_of(30)
    cache = cache_of(model, Compression(keys=SparkKeys(ratio=0.0), protect_last=0))
    dense = DynamicCache(config=model.config)
    with torch.no_grad():
        for start, stop in ((0, 20), (20, 21), (21, 22)):
            expected = model(ids[:, start:stop], past_key_values=dense).logits
            assert torch.equal(read(model, cache, ids[:, start:stop], reading), expected)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "opt", "gpt2"])
@pytest.mark.parametrize("reading", READINGS)
def test_generate_with_a_ratio_of_zero_writes_the_same(family, reading):
    model, ids = tiny_model(family), tokens_of(24, batch=2)
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cache = cache_of(model, Compression(keys=SparkKeys(ratio=0.0), protect_last=4))
    with attached(model, reading):
        found = model.generate(ids, past_key_values=cache, **options)
    assert torch.equal(found, model.generate(ids, **options))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", FULL)
@pytest.mark.parametrize(
    "method",
    [
        *(Compression(keys=form, values=form, protect_last=3) for form in FORMATS),
        Compression(keys=SparkKeys(ratio=0.5, bits=4), values=PrunedValues(ratio=0.5)),
        Compression(evict=SnapKV(budget=Budget(share=0.5), observed=4, beta=20.0)),
        Compression(
            keys=SparkKeys(ratio=0.5), evict=Tova(budget=Budget(tokens=9)), protect_first=2
        ),
    ],
    ids=str,
)
def test_the_packed_form_and_rebuilt_states_attend_alike(family, method):
    model, ids = tiny_model(family), tokens_of(50, batch=2)
    # Read once: a number that rounds another way is no matter of how it is read.
    dense = cache_of(model, Compression(keys=Dense(), window=40), automatic=False)
    read(model, dense, ids[:, :40])
    found = []
    for reading in READINGS:
        cache = dense.compressed(method)
        found.append(read(model, cache, ids[:, 40:43], reading))
        found[-1] = torch.cat([found[-1], read(model, cache, ids[:, 43:44], reading)], dim=1)
    for other in found[1:]:
        # Logits of these models are about 10: 1e-5 of that.
        torch.testing.assert_close(found[0], other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("evict", EVICTIONS, ids=str)
def test_evicting_is_masking_in_a_full_cache(evict):
    """Positions stay those of the whole prompt."""
    model, ids = tiny_model("llama"), tokens_of(33)
    full = cache_of(model, Compression(keys=Dense(), protect_last=0, window=30), automatic=False)
    read(model, full, ids[:, :30])
    evicted = full.compressed(Compression(keys=Dense(), evict=evict, protect_last=0))
    masked = full.compressed(Compression(keys=Dense(), protect_last=0))
    for layer, other in zip(full.compressible, masked.compressible, strict=True):
        states = layer.keys[:, :, :30], layer.values[:, :, :30]
        about = layer.scaling, layer.layer, layer.layers, layer.rotation
        kept = evict.keep(Prefill(*states, layer.queries, None, *about))
        other.past_valid = torch.zeros(1, 2, 30, dtype=torch.bool).scatter_(2, kept, True)
    assert evicted.get_seq_length() == masked.get_seq_length() == 30
    for start, stop in ((30, 32), (32, 33)):
        torch.testing.assert_close(
            read(model, evicted, ids[:, start:stop]),
            read(model, masked, ids[:, start:stop]),
            atol=1e-4,
            rtol=1e-5,
        )


@pytest.mark.parametrize("reading", READINGS)
def test_steps_of_one_token_equal_one_step_of_many(reading):
    model, ids = tiny_model("llama"), tokens_of(30)
    one, many = cache_of(model), cache_of(model)
    for cache in (one, many):
        read(model, cache, ids[:, :24], reading)
    steps = [read(model, one, ids[:, n : n + 1], reading) for n in range(24, 30)]
    torch.testing.assert_close(
        torch.cat(steps, dim=1), read(model, many, ids[:, 24:], reading), atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(
    "method",
    [
        PACKED,
        Compression(
            keys=SparkKeys(ratio=0.5), evict=KeyNorm(budget=Budget(tokens=14)), protect_last=4
        ),
    ],
    ids=["spark", "evicted"],
)
def test_rows_of_a_padded_batch_equal_the_same_rows_alone(reading, method):
    model, ids = tiny_model("llama"), tokens_of(30, batch=2)
    shown = torch.ones_like(ids)
    shown[1, :6] = 0
    together = cache_of(model, method)
    places = (shown.cumsum(dim=-1) - 1).clamp_min(0)
    for start, stop in ((0, 24), (24, 30)):
        found = read(
            model, together, ids[:, start:stop], reading,
            attention_mask=shown[:, :stop], position_ids=places[:, start:stop],
        )  # fmt: skip
    for row, start in ((0, 0), (1, 6)):
        alone = cache_of(model, method)
        read(model, alone, ids[row : row + 1, start:24], reading)
        expected = read(model, alone, ids[row : row + 1, 24:], reading)
        torch.testing.assert_close(found[row : row + 1], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("reading", READINGS)
def test_cropped_tokens_were_never_there(reading):
    model, ids = tiny_model("llama"), tokens_of(30)
    cache, fresh = cache_of(model), cache_of(model)
    for one in (cache, fresh):
        read(model, one, ids[:, :20], reading)
    read(model, cache, ids[:, 24:28], reading)
    cache.crop(-4)
    cache.crop(0)
    assert cache.get_seq_length() == 20
    for start, stop in ((20, 22), (22, 23)):
        assert torch.equal(
            read(model, cache, ids[:, start:stop], reading),
            read(model, fresh, ids[:, start:stop], reading),
        )


def test_a_crop_into_the_packed_prompt_cuts_its_rows():
    model, ids = tiny_model("llama"), tokens_of(30)
    cache = cache_of(model)
    read(model, cache, ids[:, :20])
    layer = cache.compressible[0]
    before = layer.past_states(0, 13, torch.float32)
    cache.crop(-7)
    assert layer.held == 0 and layer.past[0].tokens == 13 and cache.get_seq_length() == 13
    assert torch.equal(layer.past_states(0, 13, torch.float32)[0], before[0])
    read(model, cache, ids[:, 13:20])
    assert cache.get_seq_length() == 20


def test_crops_that_cannot_be_are_refused():
    model, ids = tiny_model("llama"), tokens_of(20)
    evicting = Compression(evict=StreamingLLM(budget=Budget(tokens=9)), protect_last=2)
    for method in (evicting, Compression(keys=ChannelIntegers(bits=4, group=8), protect_last=2)):
        cache = cache_of(model, method)
        read(model, cache, ids)
        with pytest.raises(ValueError, match="protect_last"):
            cache.crop(-5)
        with pytest.raises(ValueError, match="minus"):
            cache.crop(3)


def test_beams_are_reordered_repeated_and_selected():
    model, ids = tiny_model("llama"), tokens_of(24, batch=3)
    cache = cache_of(model, Compression(keys=SparkKeys(ratio=0.5, bits=8), protect_last=4))
    read(model, cache, ids[:, :20])
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    turned = read(model, cache, ids[[2, 0, 1], 20:])
    plain = cache_of(model, Compression(keys=SparkKeys(ratio=0.5, bits=8), protect_last=4))
    read(model, plain, ids[:, :20])
    plain.batch_repeat_interleave(2)
    doubled = read(model, plain, ids[:, 20:].repeat_interleave(2, dim=0))
    torch.testing.assert_close(turned, doubled[[4, 0, 2]], atol=1e-4, rtol=1e-5)
    plain.batch_select_indices(torch.tensor([0, 5]))
    assert plain.compressible[0].past[0].rows["mask"].shape[0] == 2


def test_beam_search_runs_and_equals_the_dense_one_at_ratio_zero():
    model, ids = tiny_model("llama"), tokens_of(20)
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    options["attention_mask"] = torch.ones_like(ids)
    expected = model.generate(ids, **options)
    cache = cache_of(model, Compression(keys=SparkKeys(ratio=0.0), protect_last=4))
    with attached(model):
        assert torch.equal(model.generate(ids, past_key_values=cache, **options), expected)


def test_a_cache_serves_another_request_after_a_reset():
    model, ids = tiny_model("llama"), tokens_of(30)
    cache, fresh = cache_of(model), cache_of(model)
    read(model, cache, tokens_of(17, seed=3))
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.nbytes() == 0
    for one in (cache, fresh):
        read(model, one, ids[:, :20])
    assert torch.equal(read(model, cache, ids[:, 20:]), read(model, fresh, ids[:, 20:]))


def test_a_prompt_read_in_pieces_is_packed_like_one_read_at_once():
    model, ids = tiny_model("llama"), tokens_of(40)
    whole, pieces = cache_of(model, automatic=False), cache_of(model, automatic=False)
    read(model, whole, ids[:, :36])
    for start in range(0, 36, 12):
        read(model, pieces, ids[:, start : start + 12])
    for cache in (whole, pieces):
        cache.compress()
    torch.testing.assert_close(
        read(model, whole, ids[:, 36:]), read(model, pieces, ids[:, 36:]), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("method", [PACKED, Compression(evict=SnapKV(budget=Budget(share=0.5)))])
def test_prompts_shorter_than_every_window(tokens, method):
    model = tiny_model("llama")
    cache = cache_of(model, method)
    read(model, cache, tokens_of(tokens))
    assert read(model, cache, tokens_of(2)).isfinite().all()
    assert cache.get_seq_length() == tokens + 2


def test_rows_of_padding_alone_stay_finite():
    model, ids = tiny_model("llama"), tokens_of(12, batch=2)
    shown = torch.ones_like(ids)
    shown[1] = 0
    cache = cache_of(model, Compression(keys=SparkKeys(ratio=0.5), protect_last=2))
    read(model, cache, ids, attention_mask=shown)
    more = torch.cat([shown, torch.ones(2, 1, dtype=torch.long)], dim=1)
    assert read(model, cache, ids[:, :1], attention_mask=more).isfinite().all()


@pytest.mark.parametrize("heads", [1, 4])
def test_one_key_head_for_all_and_one_for_each(heads):
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=heads, head_dim=16, vocab_size=259,
    )  # fmt: skip
    torch.manual_seed(0)
    model, ids = LlamaForCausalLM(config).eval(), tokens_of(40)
    found = []
    for reading in READINGS:
        cache = cache_of(model)
        read(model, cache, ids[:, :36], reading)
        found.append(read(model, cache, ids[:, 36:], reading))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-5, rtol=1e-5)


def test_layers_with_a_sliding_window_are_left_alone():
    model = tiny_model("qwen3")  # one layer of each kind, normalised queries and keys
    cache = cache_of(model)
    assert len(cache.compressible) == 1
    ids = tokens_of(30)
    read(model, cache, ids[:, :26])
    assert cache.stored()["windows"] and cache.stored()["keys"]
    assert read(model, cache, ids[:, 26:]).isfinite().all()
    with pytest.raises(UnsupportedModelError, match="sliding"):
        cache.compressed(PACKED)


def test_the_observed_queries_are_those_of_attention_after_their_norm():
    """Qwen3 normalises queries; the released code forgets to."""
    model, ids = tiny_model("qwen3"), tokens_of(20)
    cache = cache_of(model, automatic=False)
    seen = {}

    def note(module, args, output):
        seen["normed"] = output

    handle = model.model.layers[0].self_attn.q_norm.register_forward_hook(note)
    read(model, cache, ids)
    handle.remove()
    queries = cache.compressible[0].queries
    # Rotation keeps lengths.
    torch.testing.assert_close(queries.norm(dim=-1), seen["normed"].transpose(1, 2).norm(dim=-1))


def test_new_tokens_are_packed_in_chunks_and_the_newest_stay_dense():
    model, ids = tiny_model("llama"), tokens_of(60)
    method = Compression(
        keys=SparkKeys(ratio=0.5), protect_last=4, protect_first=2, chunk=8, min_tail=6
    )
    cache = cache_of(model, method)
    read(model, cache, ids[:, :20])
    layer = cache.compressible[0]
    head = {name: one.clone() for name, one in layer.past[0].head.items()}
    first = layer.tail(torch.float32)[0][:, :, :2].clone()
    for n in range(20, 60):
        assert read(model, cache, ids[:, n : n + 1]).isfinite().all()
        assert layer.held + layer.past[0].tokens == cache.get_seq_length() == n + 1
        assert layer.held <= 2 + 6 + 8
    assert layer.past[0].tokens > 30
    assert all(torch.equal(head[name], one) for name, one in layer.past[0].head.items())
    assert torch.equal(layer.tail(torch.float32)[0][:, :, :2], first)
    never = cache_of(
        model, Compression(keys=SparkKeys(ratio=0.0), protect_last=4, chunk=8, min_tail=6)
    )
    dense = DynamicCache(config=model.config)
    read(model, never, ids[:, :20])
    with torch.no_grad():
        model(ids[:, :20], past_key_values=dense)
        for n in range(20, 60):
            expected = model(ids[:, n : n + 1], past_key_values=dense).logits
            torch.testing.assert_close(
                read(model, never, ids[:, n : n + 1]), expected, atol=1e-4, rtol=1e-5
            )


def test_one_dense_prompt_is_compressed_in_many_ways_and_stays_as_it_is():
    model, ids = tiny_model("llama"), tokens_of(30)
    dense = cache_of(model, automatic=False)
    read(model, dense, ids[:, :24])
    kept = dense.compressible[0].tail(torch.float32)[0].clone()
    for method in (PACKED, Compression(evict=KeyNorm(budget=Budget(tokens=5)))):
        copy = dense.compressed(method)
        direct = cache_of(model, method)
        read(model, direct, ids[:, :24])
        assert torch.equal(read(model, copy, ids[:, 24:]), read(model, direct, ids[:, 24:]))
    assert torch.equal(dense.compressible[0].tail(torch.float32)[0], kept)


def test_bytes_are_those_of_the_formula_and_what_is_stored_is_half_precision():
    model, ids = tiny_model("llama"), tokens_of(40, batch=2)
    method = Compression(keys=SparkKeys(ratio=0.75), storage="float16", protect_last=8)
    cache = cache_of(model, method)
    read(model, cache, ids)
    heads = 2 * 2 * 2  # rows, layers, key heads
    assert cache.stored() == {
        "keys": heads * (32 * (4 * 2 + 2 + 2 + 2) + 6 * 16),
        "values": heads * 32 * 16 * 2,
        "tail": heads * 8 * 2 * 16 * 2,
        "other": 0,
        "windows": 0,
    }


def test_a_cache_that_saw_no_queries_says_what_to_do():
    model = tiny_model("llama")
    cache = cache_of(model, automatic=False)
    model(tokens_of(5), past_key_values=cache)
    with pytest.raises(ValueError, match="attached"):
        cache.compress()


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"protect_last": -1},
        {"chunk": 8, "keys": ChannelIntegers(bits=4)},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        Compression(**wrong)
