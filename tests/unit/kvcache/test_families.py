"""README's compressed cache on many families: smaller and right, or refused in one line."""

import pytest
import torch
from families import CONFIGS, family_model
from transformers import DynamicCache

from effllm.modules.errors import UnsupportedModelError
from effllm.modules.kvcache import attention
from effllm.modules.kvcache.attention import attached
from effllm.modules.kvcache.cache import CompressedCache
from effllm.modules.kvcache.compression import Compression
from effllm.modules.kvcache.formats.spark import SparkKeys

OWN_ATTENTION = "does not go through transformers' attention functions"
REFUSED = {
    "mistral, windows": "all 2 layers have a sliding window",
    "phi3, windows": "all 2 layers have a sliding window",
    **dict.fromkeys(("gptj", "gpt_neo", "falcon", "falcon, alibi", "bloom", "mpt"), OWN_ATTENTION),
    "gpt": OWN_ATTENTION,
    "gemma2": 'none that sdpa computes.*reading="eager"',
    "gpt_oss": 'none that sdpa computes.*reading="eager"',
    "diffllama": 'changes keys or values after they were cached; take reading="sdpa"',
    "doge": "its mask adds a bias",
    "mamba": "keeps a LinearAttentionLayer",
}
OTHER_READING = {"gemma2": "eager", "gpt_oss": "eager", "diffllama": "sdpa"}
TOKENS = torch.randint(3, 259, (1, 404), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def read(model, cache):
    """Logits of a prompt of 400 tokens and of four steps after it."""
    steps = [(0, 400), *((n, n + 1) for n in range(400, 404))]
    logits = [model(TOKENS[:, a:b], past_key_values=cache).logits for a, b in steps]
    return torch.cat(logits, dim=1)


def compressed(model, reading, ratio):
    cache = CompressedCache(model.config, Compression(keys=SparkKeys(ratio=ratio)))
    with attached(model, reading):
        logits = read(model, cache)
    return cache, logits


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cache_is_smaller_and_right_or_refused(name):
    model = family_model(name)
    before = model.config._attn_implementation
    if name in REFUSED:
        with pytest.raises(UnsupportedModelError, match=REFUSED[name]) as caught:
            compressed(model, "packed", 0.8)
        assert "\n" not in str(caught.value)
        assert model.config._attn_implementation == before
    if name not in REFUSED or name in OTHER_READING:
        expected = read(model, DynamicCache(config=model.config))
        for reading in [OTHER_READING[name]] if name in OTHER_READING else ["packed", "sdpa"]:
            cache, logits = compressed(model, reading, 0.8)
            assert all(layer.past is not None for layer in cache.compressible)
            assert 0 < cache.nbytes() < cache.dense_bytes()
            exact = compressed(model, reading, 0.0)[1]
            torch.testing.assert_close(exact, expected, atol=1e-4, rtol=1e-4)
            assert not torch.allclose(logits, expected, atol=1e-3)  # so 0.8 does reach the model


def test_attention_without_a_layer_of_the_cache_is_noticed(monkeypatch):
    """As with a model that hands on its cache by a name of its own."""
    monkeypatch.setattr(attention, "_find_layer", lambda *others: None)
    with pytest.raises(UnsupportedModelError, match="2 layers, the first of them 0, did not reach"):
        compressed(family_model("llama"), "packed", 0.8)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias", "sliding_window", "novelty"])
def test_arguments_that_are_not_understood_are_named(name):
    model = family_model("llama")
    cache = CompressedCache(model.config, Compression())
    with (
        pytest.raises(UnsupportedModelError, match=f"LlamaAttention: .*make of {name}"),
        attached(model),
    ):
        model(TOKENS[:, :9], past_key_values=cache, **{name: torch.ones(1)})
    model(TOKENS[:, :9], past_key_values=DynamicCache(config=model.config))


def test_a_window_that_only_the_mask_knows_is_noticed():
    model = family_model("llama")
    place = torch.arange(9)
    window = (place[:, None] - place >= 0) & (place[:, None] - place < 4)
    for mask in (window[None, None], torch.where(window, 0.0, -torch.inf)[None, None]):
        cache = CompressedCache(model.config, Compression())
        with pytest.raises(UnsupportedModelError, match="its mask hides tokens"), attached(model):
            model(TOKENS[:, :9], past_key_values=cache, attention_mask=mask)
