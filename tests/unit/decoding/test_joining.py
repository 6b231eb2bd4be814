"""A decoder joined from its parts, without pipelines: equal texts, and parts that do not fit."""

from functools import partial

import pytest
from compiled import needs_compiler

from effllm.modules.decoding.drafts import FirstLayers, Given
from effllm.modules.decoding.joining import Decoder
from effllm.modules.decoding.library import Library
from effllm.modules.decoding.proposers.draft import DraftModel, InnerLookup
from effllm.modules.decoding.proposers.draft_tree import DraftTree
from effllm.modules.decoding.proposers.lookup import PromptLookup
from effllm.modules.decoding.recording import Recorder
from effllm.modules.decoding.verifiers.fly import Fly
from effllm.modules.errors import ConfigError
from effllm.modules.inference.fast_path import compiled_steps, speed_up
from effllm.modules.modeling.tiny import tiny_model

PROMPT = [70, 71, 72, 70, 71, 72, 70, 71]
DRAFT = partial(DraftModel, tokens=3)


def exact_decoders():
    return {
        "plain": Decoder(),
        "lookup": Decoder(PromptLookup(tokens=4)),
        "first layers": Decoder(DRAFT, draft=FirstLayers(1)),
        "another model": Decoder(DRAFT, draft=Given(tiny_model("llama", seed=3))),
        "lookup inside": Decoder(
            partial(DraftModel, tokens=5, lookup=InnerLookup()), draft=FirstLayers(1)
        ),
        "tree": Decoder(partial(DraftTree, widths=(3, 2)), draft=FirstLayers(1)),
        "transformers": Library(),
        "transformers, lookup": Library(kind="lookup", drafted=4),
        "transformers, assisted": Library(kind="assisted", drafted=3, draft=FirstLayers(1)),
    }


@pytest.mark.parametrize("name", exact_decoders())
def test_exact_decoders_write_the_same_text(name, tiny_llama, tokenizer):
    session = exact_decoders()[name].join(tiny_llama, tokenizer)
    expected = Decoder().join(tiny_llama, tokenizer).decode(PROMPT, 24)
    found = session.decode(PROMPT, 24)
    assert found.tokens == expected.tokens and found.seconds > 0
    assert (found.prefill_seconds is None) == name.startswith("transformers")


@needs_compiler
def test_first_layers_are_compiled_where_the_target_is(tiny_llama, tokenizer):
    for fast in (False, True):
        if fast:
            assert speed_up(tiny_llama).kind == "compiled"
        session = Decoder(DRAFT, draft=FirstLayers(1)).join(tiny_llama, tokenizer)
        drafter = session.proposer.runner
        assert (drafter.steps is not None) == fast == (compiled_steps(tiny_llama) is not None)


def test_verifiers_are_told_what_the_tokens_mean(tiny_llama, tokenizer):
    tiny_llama.generation_config.eos_token_id = [7, 9]
    fly = Fly(window=2)
    session = Decoder(PromptLookup(), fly).join(tiny_llama, tokenizer)
    assert session.verifier == Fly(window=2, protected=frozenset(tokenizer.all_special_ids))
    assert session.ends == {7, 9, tokenizer.eos_token_id} and not fly.protected
    recorder = Decoder(PromptLookup(), Recorder()).join(tiny_llama, tokenizer).verifier
    assert (recorder.protected, recorder.ends) == (session.verifier.protected, session.ends)


def test_recorded_blocks_are_taken_once(tiny_llama, tokenizer):
    session = Decoder(PromptLookup(), Recorder()).join(tiny_llama, tokenizer)
    session.decode(PROMPT, 9)
    assert len(session.verifier.take()) == 8 and not session.verifier.take()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Decoder(DRAFT), "needs a draft model"),
        (lambda: Decoder(PromptLookup(), draft=FirstLayers(1)), "drafts without a model"),
        (lambda: Library(kind="assisted"), "assisted with draft NoneType"),
        (lambda: Library(draft=FirstLayers(1)), "plain with draft FirstLayers"),
    ],
)
def test_parts_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()


def test_a_decoder_says_what_it_is(tiny_llama):
    about = Decoder(DRAFT, Fly(window=3), FirstLayers(1)).about(tiny_llama)
    assert about["proposer"] == {"class": "DraftModel", "tokens": 3, "lookup": False}
    assert about["verifier"]["window"] == 3 and not about["lossless"]
    assert (about["draft"]["layers"], about["draft"]["of_layers"]) == (1, 2)
    library = Library(kind="lookup", drafted=5).about(tiny_llama)
    assert library.keys() == about.keys() and library["drafted"] == 5
