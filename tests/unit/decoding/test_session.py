"""The decoding loop: equality with plain decoding and generate, caches, ends, budgets, trees."""

import random

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, T5Config, T5ForConditionalGeneration

from effllm.modules.decoding.drafts import first_layers
from effllm.modules.decoding.library import LibrarySession
from effllm.modules.decoding.proposers.base import Nothing
from effllm.modules.decoding.proposers.draft import DraftModel, InnerLookup
from effllm.modules.decoding.proposers.draft_tree import DraftTree
from effllm.modules.decoding.proposers.lookup import NgramIndex, PromptLookup
from effllm.modules.decoding.records import Block
from effllm.modules.decoding.sampling import Sampling
from effllm.modules.decoding.session import Session
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.decoding.verifiers.fly import Fly
from effllm.modules.errors import ConfigError, UnsupportedModelError
from effllm.modules.inference.runner import ModelRunner, tree_layout
from effllm.modules.modeling.tiny import tiny_model

PROMPTS = ([65], [65, 66, 67], [70, 71, 72, 70, 71, 72, 70, 71] * 3)


def noisy(model, scale, seed=1):
    """A drafter: the target with noise on its weights."""
    draft = tiny_model(model)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for value in draft.parameters():
            value += scale * value.std() * torch.randn(value.shape, generator=generator)
    return draft


def decode(model, proposer, prompt, budget=24, verifier=None, **options):
    session = Session(ModelRunner(model), proposer, verifier or Exact(), **options)
    return session.generate(prompt, budget)


def by_generate(model, prompt, budget=24):
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=budget,
        min_new_tokens=budget,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


class Scripted:
    """Drafts a wrong-or-right script, as a chain or as a tree with decoys."""

    passes = 0

    def __init__(self, truth, prompt_length, *, tree, seed):
        self.truth, self.start_at = truth, prompt_length
        self.tree, self.random = tree, random.Random(seed)

    def start(self, prompt, ends):
        pass

    def propose(self, ids, budget, generator):
        done = len(ids) - self.start_at
        right = self.truth[done : done + min(budget, 5)]
        tokens, parents = [], []
        last = -1
        for token in right:
            if self.tree:
                tokens.append(self.random.randrange(3, 250))  # a decoy beside the right token
                parents.append(last)
            spoiled = token if self.random.random() < 0.8 else self.random.randrange(3, 250)
            tokens.append(spoiled)
            parents.append(last)
            last = len(tokens) - 1
        return Block(tokens, parents=parents if self.tree else None)


@pytest.mark.parametrize("drafted", [1, 2, 3, 5, 8, 12])
def test_every_proposer_gives_the_tokens_of_generate(tiny_llama, drafted):
    proposers = {
        "none": lambda: Nothing(),
        "lookup": lambda: PromptLookup(tokens=drafted),
        "draft": lambda: DraftModel(ModelRunner(noisy("llama", 0.05)), 259, tokens=drafted),
        "inner lookup": lambda: DraftModel(
            ModelRunner(noisy("llama", 0.05)), 259, tokens=drafted, lookup=InnerLookup()
        ),
        "early exit": lambda: DraftModel(
            ModelRunner(first_layers(tiny_llama, 1)), 259, tokens=drafted
        ),
        "tree": lambda: DraftTree(ModelRunner(noisy("llama", 0.05)), 259, (3, 2, 1)[:drafted]),
        "itself": lambda: DraftModel(ModelRunner(tiny_llama), 259, tokens=drafted),
    }
    for prompt in PROMPTS:
        expected = by_generate(tiny_llama, prompt)
        for name, make in proposers.items():
            found = decode(tiny_llama, make(), prompt)
            assert found.tokens == expected, name
            if name == "itself":
                assert all(one.accepted == one.drafted for one in found.rounds)


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_all_families_decode_exactly_with_chains_and_trees(any_family, tree):
    model = tiny_model(any_family)
    for number, prompt in enumerate(PROMPTS):
        expected = by_generate(model, prompt)
        script = Scripted(expected, len(prompt), tree=tree, seed=number)
        found = decode(model, script, prompt)
        assert found.tokens == expected
        assert len(found.rounds) < 24  # something was accepted


def test_transformers_arms_decode_the_same_law(tiny_llama):
    """Whatever the model's own generation settings say: they are no part of the comparison."""
    tiny_llama.generation_config.repetition_penalty = 5.0
    own = tiny_llama.generation_config
    plain = decode(tiny_llama, Nothing(), PROMPTS[2])
    for kind in ("plain", "lookup"):
        found = LibrarySession(tiny_llama, frozenset(), kind).decode(PROMPTS[2], 24)
        assert found.tokens == plain.tokens and found.seconds > 0
    assert tiny_llama.generation_config is own
    assert by_generate(tiny_llama, PROMPTS[2]) != plain.tokens  # they would have told


def test_a_drafted_tree_holds_the_likeliest_tokens_and_continues_the_first(tiny_llama, generator):
    draft = DraftTree(ModelRunner(tiny_llama), 259, (3, 2))
    draft.start(PROMPTS[1], frozenset())
    block = draft.propose(PROMPTS[1], 24, generator)
    runner = ModelRunner(tiny_llama)
    first = runner.sync(PROMPTS[1])[0].topk(3).indices.tolist()
    second = runner.sync([*PROMPTS[1], first[0]])[0].topk(2).indices.tolist()
    assert block.tokens == first + second
    assert block.parents == [-1, -1, -1, 0, 0]
    assert draft.propose(PROMPTS[1], 1, generator).tokens == first
    assert not draft.propose(PROMPTS[1], 0, generator).tokens
    draft.start(PROMPTS[1], frozenset(first[:1]))
    assert draft.propose(PROMPTS[1], 24, generator).tokens == first  # nothing beyond an end


def test_a_tree_of_every_token_is_right_every_time(tiny_llama):
    draft = DraftTree(ModelRunner(noisy("llama", 0.5)), 259, (259,))
    found = decode(tiny_llama, draft, PROMPTS[1], budget=9)
    assert [one.emitted for one in found.rounds] == [2, 2, 2, 2]
    with pytest.raises(ValueError, match="one width of at least 1"):
        DraftTree(ModelRunner(tiny_llama), 259, (3, 0))


def test_a_tree_deeper_than_the_window_is_refused():
    runner = ModelRunner(tiny_model("mistral"))
    assert len(runner.advance([1] * 8, parents=[-1, *range(7)])) == 8
    with pytest.raises(UnsupportedModelError, match="8 levels is deeper than its window of 8"):
        runner.advance([1] * 9, parents=[-1, *range(8)])
    with pytest.raises(ValueError, match="parents must come first"):
        tree_layout([-1, 2, 1])
    with pytest.raises(ValueError, match="nothing to feed"):
        runner.advance([])


def test_after_any_round_the_cache_equals_a_fresh_one(tiny_llama):
    expected = by_generate(tiny_llama, PROMPTS[1])
    runner = ModelRunner(tiny_llama)
    script = Scripted(expected, 3, tree=True, seed=3)
    Session(runner, script, Exact()).generate(PROMPTS[1], 16)
    covered = list(runner.ids)
    assert covered == (PROMPTS[1] + expected)[: len(covered)]
    follow = runner.advance([5])
    fresh = ModelRunner(tiny_llama).sync([*covered, 5])
    torch.testing.assert_close(follow[-1:], fresh, rtol=1e-4, atol=1e-4)


def test_sync_always_ends_like_a_fresh_prefill(tiny_llama):
    runner, dice = ModelRunner(tiny_llama), random.Random(0)
    ids = [65]
    for _ in range(30):
        keep = dice.randrange(1, len(ids) + 1)
        ids = ids[:keep] + [dice.randrange(3, 250) for _ in range(dice.randrange(0, 6))]
        logits = runner.sync(ids)
        assert runner.ids == ids and runner.cache.get_seq_length() == len(ids)
        fresh = ModelRunner(tiny_llama).sync(ids)
        torch.testing.assert_close(logits, fresh, rtol=1e-4, atol=1e-4)


def test_the_cache_grows_without_a_seam(tiny_llama, monkeypatch):
    monkeypatch.setattr("effllm.modules.inference.cache._FIRST_CAPACITY", 4)
    assert decode(tiny_llama, Nothing(), [65]).tokens == by_generate(tiny_llama, [65])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_lookup_inside_the_drafter_changes_passes_not_drafts(tiny_llama, prompt, generator):
    ids = prompt + by_generate(tiny_llama, prompt)
    for wanted in range(1, 13):
        blocks, passes = [], []
        for lookup in (None, InnerLookup()):
            draft = DraftModel(ModelRunner(tiny_llama), 259, tokens=wanted, lookup=lookup)
            draft.start(ids, frozenset())
            blocks.append(draft.propose(ids, 99, generator).tokens)
            passes.append(draft.passes)
        assert blocks[0] == blocks[1] and len(blocks[0]) == wanted
        assert passes[1] <= passes[0] == wanted


def test_the_index_finds_what_a_scan_finds():
    dice = random.Random(0)
    index, ids = NgramIndex(3), []
    for _ in range(300):
        if dice.random() < 0.2:
            ids = ids[: dice.randrange(len(ids) + 1)]
        ids = ids + [dice.randrange(4) for _ in range(dice.randrange(4))]
        index.sync(ids)
        assert index.ids == ids
        for prefer in ("earliest", "latest"):
            assert index.continuation(4, prefer) == scan(ids, 4, prefer)


def scan(ids, count, prefer):
    for n in (3, 2, 1):
        if n > len(ids):
            continue
        ends = [e for e in range(n, len(ids)) if ids[e - n : e] == ids[-n:]]
        if ends:
            end = ends[0] if prefer == "earliest" else ends[-1]
            return ids[end : end + count]
    return []


@pytest.mark.parametrize("offset", range(10))
def test_an_end_at_every_offset_ends_the_text(tiny_llama, offset):
    prompt = PROMPTS[1]
    plain = by_generate(tiny_llama, prompt)
    ends = frozenset({plain[offset], 258})
    expected = plain[: plain.index(plain[offset]) + 1]
    for proposer in (
        Nothing(),
        Scripted(plain, 3, tree=False, seed=0),
        Scripted(plain, 3, tree=True, seed=0),
        DraftModel(ModelRunner(tiny_llama), 259, tokens=8),
        DraftModel(ModelRunner(tiny_llama), 259, tokens=8, lookup=InnerLookup()),
    ):
        found = decode(tiny_llama, proposer, prompt, ends=ends)
        assert found.tokens == expected and found.stop == "eos"


@pytest.mark.parametrize("budget", [0, 1, 2, 7])
def test_the_budget_is_never_exceeded_and_accounts_add_up(tiny_llama, budget):
    draft = DraftModel(ModelRunner(tiny_llama), 259, tokens=4)
    found = decode(tiny_llama, draft, PROMPTS[1], budget)
    assert len(found.tokens) == budget and found.stop == "length"
    emitted = sum(one.emitted for one in found.rounds)
    assert emitted == max(budget - 1, 0)  # the first token comes from the prompt's pass
    assert found.acceptance_length * len(found.rounds) == pytest.approx(emitted)
    for one in found.rounds:
        assert one.accepted <= one.drafted and one.emitted <= one.accepted + 1
    if budget == 2:
        assert found.rounds[0].drafted == 0  # one token is left: nothing to draft


def test_context_and_bad_prompts(tiny_llama):
    session = Session(ModelRunner(tiny_llama), Nothing(), Exact())
    with pytest.raises(ConfigError, match="prompt is empty"):
        session.generate([], 4)
    with pytest.raises(ConfigError, match="one prompt at a time"):
        session.generate([[1, 2], [3, 4]], 4)
    with pytest.raises(ConfigError, match="0 or more"):
        session.generate([1], -1)
    for seed in (-1, 2**63):
        with pytest.raises(ConfigError, match="seed"):
            session.generate([1], 4, seed=seed)
    assert len(session.generate([1], 2, seed=2**63 - 1).tokens) == 2
    with pytest.raises(ConfigError, match="513 tokens, the model's context 512"):
        session.generate([5] * 513, 4)
    assert len(session.generate([5] * 510, 40).tokens) == 3  # the context is full


def test_unsupported_models_and_drafts_are_refused_by_name(tiny_llama):
    mamba = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=20))
    with pytest.raises(
        UnsupportedModelError, match="MambaForCausalLM.*rolled back.*linear_attention"
    ):
        ModelRunner(mamba)
    small = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20)
    with pytest.raises(UnsupportedModelError, match="T5For.*encoder-decoder"):
        ModelRunner(T5ForConditionalGeneration(small))
    narrow = tiny_model("opt")
    narrow.resize_token_embeddings(100)
    draft = DraftModel(ModelRunner(narrow), 259)
    with pytest.raises(UnsupportedModelError, match="same tokenizer"):
        decode(tiny_llama, draft, [200, 201])
    with pytest.raises(ConfigError, match="the model has 2.*draft.layers, here 1"):
        first_layers(tiny_llama, 2)


def test_a_padded_draft_head_is_cut(tiny_llama):
    padded = noisy("llama", 0.05)
    padded.resize_token_embeddings(300)
    with torch.no_grad():
        padded.get_output_embeddings().weight[259:] = 50 * padded.get_output_embeddings().weight[4]
    found = decode(tiny_llama, DraftModel(ModelRunner(padded), 259), PROMPTS[1])
    assert found.tokens == by_generate(tiny_llama, PROMPTS[1])


def test_stop_strings_split_over_tokens_are_cut_and_never_streamed(tiny_llama, tokenizer):
    prompt = PROMPTS[1]
    plain = decode(tiny_llama, Nothing(), prompt, tokenizer=tokenizer)
    text = plain.text
    stop = text[5:8]
    where = text.index(stop)
    for proposer in (Nothing(), DraftModel(ModelRunner(tiny_llama), 259, tokens=5)):
        shown = []
        session = Session(
            ModelRunner(tiny_llama), proposer, Exact(), tokenizer=tokenizer, stop_strings=(stop,)
        )
        found = session.generate(prompt, 24, on_text=shown.append)
        assert found.text == text[:where] == "".join(shown) and found.stop == "stop_string"
    with pytest.raises(ConfigError, match="tokenizer"):
        Session(ModelRunner(tiny_llama), Nothing(), Exact(), stop_strings=("x",))
    for stops in (("",), (5,)):
        with pytest.raises(ConfigError, match="stop strings"):
            Session(
                ModelRunner(tiny_llama),
                Nothing(),
                Exact(),
                tokenizer=tokenizer,
                stop_strings=stops,
            )


def test_streamed_pieces_make_the_text(tiny_llama, tokenizer):
    shown = []
    session = Session(ModelRunner(tiny_llama), PromptLookup(), Exact(), tokenizer=tokenizer)
    found = session.generate(PROMPTS[2], 40, on_text=shown.append)
    assert "".join(shown) == found.text


def test_an_interrupt_returns_what_there_is_and_leaves_the_cache_usable(tiny_llama):
    plain = by_generate(tiny_llama, PROMPTS[1])

    class Impatient(Nothing):
        rounds = 0

        def propose(self, ids, budget, generator):
            self.rounds += 1
            if self.rounds == 6:
                raise KeyboardInterrupt
            return Block([])

    runner = ModelRunner(tiny_llama)
    found = Session(runner, Impatient(), Exact()).generate(PROMPTS[1], 24)
    assert found.stop == "interrupted" and found.tokens == plain[:6]
    again = Session(runner, Nothing(), Exact()).generate(PROMPTS[1], 24)
    assert again.tokens == plain


def test_sampling_follows_its_seed(tiny_llama):
    warm = Exact(sampling=Sampling(temperature=1.0, top_p=0.9))
    draft = DraftModel(ModelRunner(noisy("llama", 0.05)), 259, sampling=Sampling(temperature=1.0))
    session = Session(ModelRunner(tiny_llama), draft, warm)
    first, second, other = (session.generate([65, 66], 20, seed=s).tokens for s in (1, 1, 2))
    assert first == second != other


def test_sampled_decoding_draws_the_models_law(tiny_llama):
    """First two tokens over 1,200 seeds: shares of the pooled bytes within 4.5 standard errors."""
    sampling = Sampling(temperature=1.0, top_k=3)
    draft = DraftModel(ModelRunner(noisy("llama", 0.2)), 259, tokens=2, sampling=sampling)
    session = Session(ModelRunner(tiny_llama), draft, Exact(sampling=sampling))
    runner = ModelRunner(tiny_llama)
    first = sampling.law(runner.sync([65, 66]))[0]
    expected = {}
    for one in first.nonzero()[:, 0].tolist():
        second = sampling.law(runner.sync([65, 66, one]))[0]
        for two in second.nonzero()[:, 0].tolist():
            expected[one, two] = float(first[one] * second[two])
    draws = 1200
    counts = dict.fromkeys(expected, 0)
    for seed in range(draws):
        counts[tuple(session.generate([65, 66], 3, seed=seed).tokens[:2])] += 1
    for pair, probability in expected.items():
        spread = (probability * (1 - probability) / draws) ** 0.5
        assert abs(counts[pair] / draws - probability) < 4.5 * spread


def test_fly_keeps_more_than_exact_and_equals_it_when_shut(tiny_llama):
    draft = lambda: DraftModel(ModelRunner(noisy("llama", 0.1)), 259, tokens=8)  # noqa: E731
    lengths = {}
    for name, verifier in {
        "exact": Exact(),
        "shut": Fly(threshold=9.0, window=2),
        "fly": Fly(threshold=0.3, window=2),
        "no window": Fly(threshold=0.3, window=0),
        "all": Fly(threshold=0.0, window=0),
    }.items():
        found = [decode(tiny_llama, draft(), p, 40, verifier) for p in PROMPTS]
        rounds = [one for one in found for one in one.rounds]
        lengths[name] = sum(one.emitted for one in rounds) / len(rounds)
        if name in ("exact", "shut"):
            assert all(
                one.tokens == by_generate(tiny_llama, p, 40)
                for one, p in zip(found, PROMPTS, strict=True)
            )
            assert not any(one.loosened for one in rounds)
    assert lengths["exact"] == lengths["shut"] <= lengths["fly"] <= lengths["no window"]
    assert lengths["no window"] < lengths["all"]


def test_a_model_that_ignores_the_cache_is_refused():
    """It would write on knowing the last token only."""
    from transformers import AutoModelForCausalLM, OpenAIGPTConfig

    config = OpenAIGPTConfig(vocab_size=259, n_embd=32, n_layer=2, n_head=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="OpenAIGPTLMHeadModel: not all of its layers"):
        ModelRunner(model).advance([5, 6, 7])
