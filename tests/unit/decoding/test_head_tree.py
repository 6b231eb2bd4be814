"""Trees of heads: the text is that of plain decoding, whatever the heads say."""

import pytest
import torch
from compiled import needs_compiler
from toy_heads import random_texts

from effllm.modules.decoding.drafts import FirstLayers
from effllm.modules.decoding.joining import Decoder
from effllm.modules.decoding.proposers.base import Nothing
from effllm.modules.decoding.proposers.head_tree import HeadTree
from effllm.modules.decoding.sampling import Sampling
from effllm.modules.decoding.session import Session
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.decoding.verifiers.fly import Fly
from effllm.modules.errors import ConfigError
from effllm.modules.heads.amphista import Amphista
from effllm.modules.heads.loaded import LoadedHeads
from effllm.modules.heads.medusa import Medusa, MedusaToken
from effllm.modules.heads.states import last_hidden
from effllm.modules.heads.target import frozen_weights
from effllm.modules.inference.fast_path import speed_up
from effllm.modules.inference.runner import ModelRunner
from effllm.modules.modeling.tiny import byte_tokenizer, tiny_model

PROMPTS = random_texts(6, 256, shortest=1, longest=20)
DRAFTERS = [Medusa, MedusaToken, Amphista]


def some_ranks(heads=4, positions=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(positions, heads, generator=generator) ** 2 * 6).int()


def heads_of(model, cls, *, start=False, token_ids=None, **settings):
    """Heads away from their start, so that guesses are bold; or at it, so that some are right."""
    torch.manual_seed(0)
    drafter = cls(model.config, **settings)
    if not start:
        with torch.no_grad():
            for parameter in drafter.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
    known = torch.arange(3, 200) if token_ids is None else token_ids
    return LoadedHeads(drafter.eval(), known, some_ranks(drafter.heads))


def decode(model, proposer, prompt, budget=40, *, ends=frozenset(), sampling=None):
    verifier = Exact(sampling=sampling or Sampling())
    return Session(ModelRunner(model), proposer, verifier, ends).generate(prompt, budget, seed=3)


@pytest.fixture(params=["eager", pytest.param("compiled", marks=needs_compiler)])
def model(request):
    found = tiny_model("llama")
    if request.param == "compiled":
        assert speed_up(found).kind == "compiled"
    return found


@pytest.mark.parametrize("cls", DRAFTERS)
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("nodes", [1, 7, 40])
def test_the_text_is_that_of_plain_decoding(model, cls, start, nodes):
    proposer = HeadTree(heads_of(model, cls, start=start), model, nodes=nodes)
    kept = 0
    for prompt in PROMPTS:
        found = decode(model, proposer, prompt)
        assert found.tokens == decode(model, Nothing(), prompt).tokens
        kept += sum(one.accepted for one in found.rounds)
    assert kept or not start  # texts of a tiny model repeat a token now and then


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_other_families_give_their_plain_text_too(family):
    model = tiny_model(family)
    proposer = HeadTree(heads_of(model, Amphista), model, nodes=9)
    for prompt in PROMPTS[:3]:
        assert decode(model, proposer, prompt).tokens == decode(model, Nothing(), prompt).tokens


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_drawn_texts_are_those_of_plain_decoding_token_for_token(model, temperature):
    sampling = Sampling(temperature=temperature, top_p=0.9)
    proposer = HeadTree(heads_of(model, Amphista, start=True), model, nodes=16)
    for prompt in PROMPTS:
        plain = decode(model, Nothing(), prompt, sampling=sampling)
        assert decode(model, proposer, prompt, sampling=sampling).tokens == plain.tokens


class Checked(HeadTree):
    """Compares every round's guesses with heads asked afresh about the whole text."""

    rounds = 0

    def _guesses(self, ids):
        found = super()._guesses(ids)
        hidden = last_hidden(self.model, [list(ids[:-1])])[0][None].float()
        vectors = self._drafter(hidden, self._target.embed(torch.tensor([list(ids[1:])])))
        logits = self._target.logits(vectors[0, -1])
        for mine, row in zip(found, logits, strict=True):
            columns = torch.searchsorted(self._target.token_ids, torch.tensor(mine))
            best = row.topk(len(mine)).values
            torch.testing.assert_close(row[columns], best, atol=1e-3, rtol=1e-3)
        self.rounds += 1
        return found


@pytest.mark.parametrize("cls", DRAFTERS)
def test_guesses_after_any_number_of_kept_tokens_are_those_of_the_whole_text(model, cls):
    proposer = Checked(heads_of(model, cls, start=True), model, nodes=12)
    for prompt in (PROMPTS[0], PROMPTS[3], PROMPTS[0]):  # the first again: it is cached already
        decode(model, proposer, prompt)
    assert proposer.rounds > 10


class Told(HeadTree):
    """First guesses as told: the truth, or what is never right."""

    truth = ()
    right = True

    def _guesses(self, ids):
        super()._guesses(ids)
        after = list(self.truth[len(ids) : len(ids) + 4])
        padded = after + [5] * (4 - len(after))
        return [[token if self.right else (token + 1) % 250] * 6 for token in padded]


@pytest.mark.parametrize("right", [True, False])
def test_true_guesses_give_one_more_token_than_heads_and_wrong_ones_give_one(model, right):
    chain = LoadedHeads(
        heads_of(model, Amphista).drafter, torch.arange(250), torch.zeros(5, 4, dtype=torch.int32)
    )
    for prompt in PROMPTS:
        plain = decode(model, Nothing(), prompt, budget=41)
        told = Told(chain, model, nodes=4)
        told.truth, told.right = [*prompt, *plain.tokens], right
        found = decode(model, told, prompt, budget=41)
        assert found.tokens == plain.tokens
        assert [one.emitted for one in found.rounds] == ([5] * 8 if right else [1] * 40)


def test_token_zero_is_a_token_like_any_other(model):
    """Padded paths of other code count as accepted where it is the target's choice."""
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[0] = 1.02 * weight[decode(model, Nothing(), PROMPTS[0]).tokens[5]]
    if ModelRunner(model).steps is not None:
        speed_up(model)  # weights are packed copies
    proposer = HeadTree(heads_of(model, Amphista, token_ids=torch.arange(200)), model, nodes=20)
    zeros = 0
    for prompt in PROMPTS:
        plain = decode(model, Nothing(), prompt)
        assert decode(model, proposer, prompt).tokens == plain.tokens
        zeros += plain.tokens.count(0)
    assert zeros


def test_texts_end_inside_a_path_and_nothing_is_drafted_below_an_end(model, generator):
    proposer = HeadTree(heads_of(model, Medusa, start=True), model, nodes=30)
    for prompt in PROMPTS:
        whole = decode(model, Nothing(), prompt).tokens
        for end in (whole[0], whole[3], whole[11]):
            ends = frozenset({end})
            plain = decode(model, Nothing(), prompt, ends=ends)
            found = decode(model, proposer, prompt, ends=ends)
            assert found.tokens == plain.tokens and found.stop == plain.stop == "eos"
    ends = frozenset(range(0, 256, 2))
    proposer.start(PROMPTS[3], ends)
    proposer.observe(last_hidden(model, [PROMPTS[3]])[0])
    block = proposer.propose([*PROMPTS[3], 7], 10, generator)
    assert len(block) > 4
    assert not any(p >= 0 and block.tokens[p] in ends for p in block.parents)


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
def test_trees_are_no_deeper_than_the_budget(model, budget, generator):
    proposer = HeadTree(heads_of(model, Amphista), model, nodes=40)
    proposer.start(PROMPTS[3], frozenset())
    proposer.observe(last_hidden(model, [PROMPTS[3]])[0])
    block = proposer.propose([*PROMPTS[3], 7], budget, generator)
    depths = []
    for parent in block.parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    assert max(depths) == budget
    for prompt in PROMPTS:
        found = decode(model, proposer, prompt, budget=budget)
        assert found.tokens == decode(model, Nothing(), prompt, budget=budget).tokens


def test_texts_go_on_to_the_end_of_the_context(model):
    limit = ModelRunner(model).limit
    prompt = random_texts(1, 256, shortest=limit - 6, longest=limit - 5)[0]
    proposer = HeadTree(heads_of(model, Amphista, start=True), model, nodes=16)
    assert decode(model, proposer, prompt).tokens == decode(model, Nothing(), prompt).tokens


def test_the_chain_of_first_guesses_stands_in_front(tiny_llama):
    proposer = HeadTree(heads_of(tiny_llama, Medusa), tiny_llama, nodes=20)
    chain = [node for node in proposer.tree if not any(node)]
    assert len(chain) > 1 and proposer.tree[: len(chain)] == chain


def test_plain_decoding_keeps_no_states(model):
    runner = ModelRunner(model)
    session = Session(runner, Nothing(), Exact())
    session.generate(PROMPTS[0], 5)
    assert not runner.keeps_states and runner.states is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_those_that_the_head_read(model, dtype):
    if dtype is torch.bfloat16:
        compiled = ModelRunner(model).steps is not None
        model = tiny_model("llama").to(dtype)
        if compiled:
            speed_up(model)
    runner = ModelRunner(model)
    runner.keeps_states = True
    for count in (130, 1, 9):  # more than one stretch, one token, a few
        logits = runner.advance(list(range(3, 3 + count)))
        assert runner.states.shape == (count, 64) and runner.states.dtype == dtype
        read = model.get_output_embeddings()(runner.states).float()
        torch.testing.assert_close(read, logits, atol=1e-5 if dtype.itemsize > 2 else 2e-2, rtol=0)


def test_heads_are_joined_with_their_target_and_judged_exactly_only(tiny_llama):
    from functools import partial

    heads, tokenizer = heads_of(tiny_llama, Amphista), byte_tokenizer()
    factory = partial(HeadTree, nodes=5)
    session = Decoder(factory, Exact(), heads).join(tiny_llama, tokenizer)
    assert len(session.proposer.tree) == 5
    rows, _ = frozen_weights(tiny_llama)
    assert torch.equal(session.proposer._target.embedding, rows)
    with pytest.raises(ConfigError, match="judges chains only"):
        Decoder(factory, Fly(), heads).join(tiny_llama, tokenizer)
    with pytest.raises(ConfigError, match="HeadTree cannot draft with FirstLayers"):
        Decoder(factory, Exact(), FirstLayers(1)).join(tiny_llama, tokenizer)
