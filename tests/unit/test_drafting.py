"""Draft models: their training text, their shape, their loss."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from effllm.modules.data.texts import Document
from effllm.modules.decoding.proposers.draft import DraftModel, InnerLookup
from effllm.modules.decoding.sampling import Sampling
from effllm.modules.drafting.distillation import (
    DraftDistillation,
    agreement,
    distillation_loss,
    within_vocabulary,
)
from effllm.modules.drafting.requests import REQUESTS, passage_requests
from effllm.modules.drafting.shape import (
    ReducedHead,
    reduce_vocabulary,
    restore_vocabulary,
    usual_tokens,
    with_layers,
)
from effllm.modules.drafting.traces import write_greedily
from effllm.modules.errors import DataError
from effllm.modules.inference.runner import ModelRunner


def some_ids(rows, columns, vocabulary, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, vocabulary, (rows, columns), generator=generator)


def test_batched_texts_are_those_of_generate(any_model):
    prompts = some_ids(3, 7, any_model.config.vocab_size)
    found, likely, probabilities = write_greedily(any_model, prompts, 9, frozenset(), 5)
    assert likely.shape == probabilities.shape == (3, 7 + 9 - 1, 5)
    whole = torch.cat([prompts, torch.tensor(found)], dim=1)
    law = any_model(whole).logits[:, :-1].softmax(dim=-1)
    torch.testing.assert_close(law.gather(-1, likely), probabilities)
    torch.testing.assert_close(law.topk(5).values, probabilities)
    for prompt, tokens in zip(prompts, found, strict=True):
        output = any_model.generate(
            prompt[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            min_new_tokens=9,
            max_new_tokens=9,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert tokens == output[0, len(prompt) :].tolist()


def test_batched_texts_stop_at_their_own_ends(tiny_llama):
    prompts = some_ids(4, 20, tiny_llama.config.vocab_size)  # longer than a pass of the prefill
    free = write_greedily(tiny_llama, prompts, 8, frozenset(), 1)[0]
    end = free[0][3]
    stopped = write_greedily(tiny_llama, prompts, 8, frozenset({end}), 1)[0]
    for whole, cut in zip(free, stopped, strict=True):
        expected = whole[: whole.index(end) + 1] if end in whole else whole
        assert cut == expected


def test_requests_have_equal_length_per_wording_and_tell_missing_text():
    def encode(text, chat):
        return [1] * chat + list(text.encode())

    def decode(ids):
        return bytes(ids).decode()

    documents = [Document(str(n), chr(65 + n) * 100) for n in range(4)]
    found = passage_requests(documents, encode, decode, count=24, tokens=20, seed=0)
    assert len(found) == 24
    lengths = {tuple(sorted({len(one) for one in found[n :: len(REQUESTS)]})) for n in range(8)}
    assert all(len(one) == 1 for one in lengths)
    assert len(found[0]) == 20 and len(set(found[0])) == 1  # the bare passage, of one article
    with pytest.raises(DataError, match="hold 20 passages of 20 tokens, 25 are needed"):
        passage_requests(documents, encode, decode, count=200, tokens=20, seed=0)


def test_all_layers_give_the_model_and_the_copy_shares_nothing(any_model):
    layers = range(any_model.config.num_hidden_layers)
    copy = with_layers(any_model, list(layers))
    ids = some_ids(2, 6, any_model.config.vocab_size)
    before = any_model(ids).logits
    torch.testing.assert_close(copy(ids).logits, before, rtol=0, atol=0)
    with torch.no_grad():
        for value in copy.parameters():
            value.add_(1.0)
    torch.testing.assert_close(any_model(ids).logits, before, rtol=0, atol=0)


def test_a_draft_of_the_last_layer_survives_saving_and_caching(tiny_llama, tmp_path):
    draft = with_layers(tiny_llama, [1])
    with torch.no_grad():  # a head of its own must not be tied again when it is read back
        draft.get_output_embeddings().weight.mul_(2.0)
    draft.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = some_ids(1, 6, tiny_llama.config.vocab_size)
    torch.testing.assert_close(again(ids).logits, draft(ids).logits)
    runner = ModelRunner(draft)
    rows = [runner.advance([token]) for token in ids[0].tolist()]
    torch.testing.assert_close(torch.cat(rows), draft(ids).logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [[], [2], [1, 0], [-1]])
def test_wrong_layers_are_refused(tiny_llama, layers):
    with pytest.raises(ValueError, match="rising layer numbers below 2"):
        with_layers(tiny_llama, layers)


def test_a_reduced_head_gives_the_same_columns_and_goes_back(tiny_llama):
    kept = torch.tensor([0, 3, 7, 50])
    draft = with_layers(tiny_llama, [0])
    ids = some_ids(1, 5, draft.config.vocab_size)
    whole, head = draft(ids).logits, draft.get_output_embeddings()
    reduce_vocabulary(draft, kept)
    assert isinstance(draft.get_output_embeddings(), ReducedHead)
    torch.testing.assert_close(draft(ids).logits, whole[..., kept])
    with torch.no_grad():
        draft.get_output_embeddings().weight.zero_()
    restore_vocabulary(draft, head)
    changed = draft(ids).logits
    assert (changed[..., kept] == 0).all()
    others = [one for one in range(draft.config.vocab_size) if one not in kept.tolist()]
    torch.testing.assert_close(changed[..., others], whole[..., others])


def test_usual_tokens_are_the_frequent_ones_and_the_ends():
    texts = [[5, 5, 5, 9, 9, 2], [7, 9, 5]]
    assert usual_tokens(texts, 3, [2]).tolist() == [2, 5, 9]
    assert usual_tokens(texts, 99, [1]).tolist() == [1, 2, 5, 7, 9]


@pytest.mark.parametrize("lookup", [None, InnerLookup()])
def test_a_reduced_draft_drafts_the_best_of_its_own_tokens(tiny_llama, lookup, generator):
    kept = torch.arange(10, 60, 3)
    draft = reduce_vocabulary(with_layers(tiny_llama, [0, 1]), kept)
    vocabulary = tiny_llama.config.vocab_size
    proposer = DraftModel(ModelRunner(draft), vocabulary, tokens=5, lookup=lookup)
    prompt = [65, 66, 67, 65, 66]
    proposer.start(prompt, frozenset())
    block = proposer.propose(prompt, 5, generator)
    ids = list(prompt)
    for token in block.tokens:
        best = kept[tiny_llama(torch.tensor([ids])).logits[0, -1, kept].argmax()]
        assert token == int(best)
        ids.append(token)


def test_laws_of_a_reduced_draft_are_laws_over_the_targets_tokens(tiny_llama, generator):
    kept = torch.arange(10, 60, 3)
    draft = reduce_vocabulary(with_layers(tiny_llama, [0, 1]), kept)
    vocabulary = tiny_llama.config.vocab_size
    proposer = DraftModel(
        ModelRunner(draft), vocabulary, tokens=4, sampling=Sampling(temperature=1.0)
    )
    proposer.start([65, 66], frozenset())
    block = proposer.propose([65, 66], 4, generator)
    assert block.laws.shape == (4, vocabulary)
    torch.testing.assert_close(block.laws.sum(dim=1), torch.ones(4))
    assert (block.laws > 0).any(dim=0).nonzero().flatten().tolist() == kept.tolist()
    expected = tiny_llama(torch.tensor([[65, 66]])).logits[0, -1, kept].softmax(dim=-1)
    torch.testing.assert_close(block.laws[0, kept], expected)


def test_the_loss_is_the_cross_entropy_to_the_likely_tokens():
    logits = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    columns = torch.tensor([[[0, 2], [1, 5], [3, 4]]] * 2)
    probabilities = torch.tensor([[[0.5, 0.3], [0.9, 0.05], [0.0, 0.0]]] * 2)
    expected = total = 0.0
    for row in range(2):
        for at in range(3):
            log = logits[row, at].log_softmax(dim=-1)
            for column, weight in zip(columns[row, at], probabilities[row, at], strict=True):
                expected -= weight * log[column]
                total += weight
    torch.testing.assert_close(distillation_loss(logits, columns, probabilities), expected / total)
    padding = logits.clone()
    padding[:, 2] = 100.0
    assert distillation_loss(padding, columns, probabilities) == distillation_loss(
        logits, columns, probabilities
    )


def test_likely_tokens_become_columns_of_the_reduced_head():
    ids = torch.tensor([[[4, 9], [16, 42]], [[0, 99], [8, 15]]])
    chances = torch.full(ids.shape, 0.25)
    kept = torch.tensor([4, 8, 15, 16, 23, 42])
    columns, learnt = within_vocabulary(ids, chances, kept)
    inside = torch.isin(ids, kept)
    assert torch.equal(learnt > 0, inside)
    assert torch.equal(kept[columns][inside], ids[inside])


def test_training_brings_the_draft_closer_to_its_target(tiny_llama, tmp_path):
    from effllm.modules.training import fit

    kept = torch.arange(5, 90)
    texts = some_ids(16, 12, tiny_llama.config.vocab_size)
    best = tiny_llama(texts).logits.softmax(dim=-1).topk(8)
    columns, probabilities = within_vocabulary(best.indices, best.values.detach(), kept)
    choices = best.indices[..., 0]
    draft = reduce_vocabulary(with_layers(tiny_llama, [0]), kept)
    used = torch.ones_like(texts, dtype=torch.bool)
    before = agreement(draft, texts, choices, used)
    embedding = draft.get_input_embeddings().weight.clone()

    def optimizer(parameters):
        return torch.optim.AdamW(parameters, lr=1e-2)

    module = DraftDistillation(draft.train(), optimizer)
    fit(
        module,
        tmp_path,
        epochs=20,
        accelerator="cpu",
        tensors=[texts, columns, probabilities],
        batch_size=8,
    )
    assert agreement(draft.eval(), texts, choices, used) > before + 0.1
    assert torch.equal(draft.get_input_embeddings().weight, embedding)
