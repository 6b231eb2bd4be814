"""Which methods take which families of models: the table of docs/models.md is what happens here."""

from pathlib import Path

import pytest
import torch
from families import CONFIGS, family_model

import effllm
from effllm.modules.errors import EffLLMError
from effllm.modules.modeling.tiny import byte_tokenizer

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
TEXTS = ["The river crosses the old bridge, and the morning train follows it. " * 4] * 2


def pruned(model, tokenizer):
    effllm.prune(model, tokenizer, TEXTS, sequences=2, length=32)


def decoded(model, tokenizer):
    effllm.decoder(model, tokenizer).generate(tokenizer(TEXTS[0])["input_ids"][:40], 4)


def compressed(model, tokenizer):
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    with effllm.compress_cache(model) as cache:
        model.generate(**inputs, past_key_values=cache, max_new_tokens=4)
    assert cache.nbytes() < cache.dense_bytes() + cache.stored()["windows"]


METHODS = {
    "weights pruned": pruned,
    "decoded with guesses": decoded,
    "cache compressed": compressed,
}


def outcome(method, name):
    """Whether a method works on a family; a refusal is one of ours."""
    try:
        with torch.random.fork_rng(devices=[]):
            METHODS[method](family_model(name), byte_tokenizer())
    except EffLLMError:
        return ""
    return "yes"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_document_says_what_works_on_a_family(name):
    row = f"| {' | '.join([name, *(outcome(method, name) for method in METHODS)])} |"
    assert row in DOCUMENT.read_text().splitlines(), row


def test_the_document_has_no_other_families():
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    assert rows[0] == f"| {' | '.join(['family', *METHODS])} |"
    assert [row.split(" | ")[0].lstrip("| ") for row in rows[1:]] == list(CONFIGS)
