"""Prompts for decoding benchmarks, and the measures of decoded text."""

import pytest
import torch

from effllm.modules.data.prompts import article_prompts
from effllm.modules.data.texts import Document
from effllm.modules.errors import DataError
from effllm.modules.evaluation.generations import (
    continuation_nll,
    distinct_share,
    first_difference,
)


def articles(count=6):
    words = " ".join(f"w{i}" for i in range(120))
    return [Document(f"a{n}", f"{n}x {words}\n{n}y {words}") for n in range(count)]


def test_prompts_of_every_kind_come_from_different_paragraphs():
    prompts = article_prompts(articles(), per_group=3, words=160, seed=0)
    assert len({one.id for one in prompts}) == 12
    groups = [one.group for one in prompts]
    assert {group: groups.count(group) for group in groups} == {
        "continue": 3,
        "summarise": 3,
        "quote": 3,
        "recall": 3,
    }
    openings = {one.text.split("\n")[-1].split()[0] for one in prompts if one.group != "recall"}
    assert len(openings) == 9
    for one in prompts:
        if one.answer is not None:
            name = one.text.split()[-1].rstrip("?")
            assert f"{name}: {one.answer}" in one.text
    assert prompts == article_prompts(articles(), per_group=3, words=160, seed=0)
    assert prompts != article_prompts(articles(), per_group=3, words=160, seed=1)


def test_too_little_text_is_named():
    with pytest.raises(DataError, match="12 long paragraphs, 15 are needed"):
        article_prompts(articles(), per_group=5, words=160, seed=0)


def test_measures_of_text(tiny_llama):
    assert distinct_share([1, 2, 1, 2, 1]) == 0.5 and distinct_share([7]) == 1.0
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) is None
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        law = tiny_llama(ids).logits.log_softmax(-1)[0]
    expected = -(law[1, 7] + law[2, 8]) / 2
    assert continuation_nll(tiny_llama, [5, 6], [7, 8]) == pytest.approx(float(expected), rel=1e-4)
