"""One call each: the same as the parts, and refusals on one line."""

import subprocess
import sys

import pytest
import torch

import effllm
from effllm.modules.calibration.stream import BlockStream
from effllm.modules.data.windows import crop_windows
from effllm.modules.errors import ConfigError
from effllm.modules.modeling.tiny import tiny_model
from effllm.modules.sparsity.patterns import Grouped
from effllm.modules.sparsity.pruners import Wanda
from effllm.modules.sparsity.sequential import prune_block

TEXTS = ["The river crosses the old bridge, and the morning train follows it. " * 4] * 2


def test_pruning_in_one_call_is_pruning_block_by_block(tiny_llama, tokenizer):
    masks = effllm.prune(tiny_llama, tokenizer, TEXTS, sequences=3, length=32)
    model = tiny_model("llama")
    windows, _ = crop_windows(
        TEXTS,
        lambda text: (tokenizer(text)["input_ids"], []),
        num_sequences=3,
        sequence_length=32,
        generator=torch.Generator().manual_seed(0),
    )
    stream = BlockStream(model, windows, 4)
    for _ in stream.blocks:
        prune_block(stream, Wanda(), Grouped(keep=2, group=4))
    for one, other in zip(tiny_llama.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(masks) == 14 and all(mask.float().mean() == 0.5 for mask in masks.values())


@pytest.mark.parametrize(
    ("pattern", "kept"), [("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.75), ("75%", 0.25)]
)
def test_patterns_go_by_their_names(pattern, kept, tiny_llama, tokenizer):
    masks = effllm.prune(
        tiny_llama, tokenizer, TEXTS, method="magnitude", pattern=pattern, sequences=1, length=16
    )
    for mask in masks.values():
        assert mask.float().mean() == pytest.approx(kept, abs=0.01)


def test_without_texts_the_embedded_articles_are_read(tiny_llama, tokenizer):
    effllm.prune(tiny_llama, tokenizer, sequences=2, length=64)
    assert float((tiny_llama.model.layers[1].mlp.up_proj.weight == 0).float().mean()) == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "wonder"}, "'wonder': expected one of magnitude, wanda, ria, sparsegpt"),
        ({"pattern": "4:4"}, "'4:4': expected removed:group such as 2:4"),
        ({"pattern": "half"}, "'half': expected removed:group"),
        ({"pattern": "3:7"}, "3:7 does not fit layer 0"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(settings, message, tiny_llama, tokenizer):
    with pytest.raises(ConfigError, match=message):
        effllm.prune(tiny_llama, tokenizer, TEXTS, **settings)


def test_a_compressed_cache_holds_less_and_the_model_is_left_as_it_was(tiny_llama, tokenizer):
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    before = tiny_llama(**inputs).logits
    with effllm.compress_cache(tiny_llama) as cache:
        tokens = tiny_llama.generate(**inputs, past_key_values=cache, max_new_tokens=4)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 4
    assert 0 < cache.nbytes() < cache.dense_bytes()
    assert torch.equal(tiny_llama(**inputs).logits, before)


def test_exact_decoders_write_the_text_of_generate(tiny_llama, tokenizer):
    tokens = tokenizer(TEXTS[0])["input_ids"][:60]
    expected = tiny_llama.generate(torch.tensor([tokens]), max_new_tokens=12, do_sample=False)
    for method, draft in [("plain", None), ("lookup", None), ("draft", tiny_model("llama", 1))]:
        found = effllm.decoder(tiny_llama, tokenizer, method, draft).generate(tokens, 12)
        assert [*tokens, *found.tokens] == expected[0].tolist()
    assert effllm.decoder(tiny_llama, tokenizer, "fly").generate(tokens, 12).text
    with pytest.raises(ConfigError, match="needs a draft model"):
        effllm.decoder(tiny_llama, tokenizer, "draft")
    with pytest.raises(ConfigError, match="'guess': expected one of plain, lookup, draft, fly"):
        effllm.decoder(tiny_llama, tokenizer, "guess")


def test_importing_effllm_imports_no_torch():
    code = "import sys, effllm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        effllm.nothing  # noqa: B018
