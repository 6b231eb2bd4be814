"""Hidden states on disk: those of a fresh pass, text by text; loops are found where they begin."""

import pytest
import torch
from safetensors import SafetensorError
from toy_heads import random_texts, stored_texts

from effllm.modules.errors import UnsupportedModelError
from effllm.modules.heads.states import StateTexts, before_loop, last_hidden
from effllm.modules.heads.target import (
    FrozenTarget,
    frozen_weights,
    tokenizer_hash,
    with_lowest,
)
from effllm.modules.modeling.tiny import tiny_model


def test_states_are_what_the_head_reads(any_family):
    model = tiny_model(any_family)
    texts = random_texts(4, model.config.vocab_size)
    for text, hidden in zip(texts, last_hidden(model, texts), strict=True):
        logits = model(torch.tensor([text])).logits[0]
        read = model.get_output_embeddings()(hidden)
        torch.testing.assert_close(read, logits, atol=1e-5, rtol=1e-4)


def test_texts_come_back_from_any_shard_padded_at_their_ends(tiny_llama, tmp_path):
    texts = random_texts(7, tiny_llama.config.vocab_size)
    hidden = last_hidden(tiny_llama, texts)
    stored = stored_texts(tmp_path, texts, hidden, 4)
    assert len(stored) == 7 and stored.all_tokens() == texts
    batch = stored.batch([6, 0, 3])
    assert batch.lengths.tolist() == [len(texts[i]) for i in (6, 0, 3)]
    assert batch.prompt_lengths.tolist() == [4, 4, 4]
    for row, text in enumerate((6, 0, 3)):
        length = len(texts[text])
        assert batch.tokens[row, :length].tolist() == texts[text]
        assert torch.equal(batch.hidden[row, :length], hidden[text])
        assert not batch.hidden[row, length:].any()


def test_a_truncated_shard_is_noticed(tiny_llama, tmp_path):
    texts = random_texts(3, tiny_llama.config.vocab_size)
    stored_texts(tmp_path, texts, last_hidden(tiny_llama, texts), 4)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(SafetensorError):
        StateTexts([file])


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ([1, 2, 3, 4, 5, 6], 6),
        ([1, 2, 3, 1, 2, 3, 1, 2, 3], 3),
        ([9, 1, 2, 3, 8, 1, 2, 3, 7], 5),
        ([7, 7, 7, 7, 7], 1),
        ([1, 2], 2),
        ([], 0),
    ],
)
def test_an_answer_ends_before_it_repeats_itself(answer, kept):
    assert before_loop(answer, 3) == kept


def test_tokens_that_cannot_be_guessed_have_no_column(generator):
    weight = torch.randn(20, 4, generator=generator)
    target = FrozenTarget.of(weight, weight, torch.tensor([0, 4, 7, 19]))
    assert target.columns(torch.tensor([[0, 1], [7, 19], [18, 4]])).tolist() == [
        [0, -1],
        [2, 3],
        [-1, 1],
    ]
    torch.testing.assert_close(target.logits(weight[:2]), (weight[:2] @ weight.T)[:, [0, 4, 7, 19]])


def test_few_texts_are_filled_up_with_the_first_tokens_of_the_tokenizer():
    found = with_lowest(torch.tensor([1, 7, 300]), 6, 1000)
    assert found.tolist() == [0, 1, 2, 3, 7, 300]
    assert with_lowest(torch.tensor([4, 2]), 1, 1000).tolist() == [2, 4]
    assert with_lowest(torch.tensor([4]), 99, 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_hash_of_a_tokenizer_knows_its_tokens(tokenizer):
    before = tokenizer_hash(tokenizer)
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_hash(tokenizer) != before


def test_a_head_with_a_bias_is_refused(tiny_llama):
    tiny_llama.lm_head = torch.nn.Linear(64, tiny_llama.config.vocab_size)
    with pytest.raises(UnsupportedModelError, match="output head has a bias"):
        frozen_weights(tiny_llama)
