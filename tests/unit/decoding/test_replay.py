"""Recorded blocks and the offline replay, against the verifiers themselves."""

import itertools

import numpy as np
import pytest
import torch

from effllm.modules.decoding.proposers.draft import DraftModel
from effllm.modules.decoding.proposers.lookup import PromptLookup
from effllm.modules.decoding.recording import RecordedBlock, RecordedMismatch, Recorder
from effllm.modules.decoding.records import Block
from effllm.modules.decoding.replay import (
    ExactRule,
    FlyRule,
    MarginRule,
    TypicalRule,
    replay,
    summarise,
    walk,
)
from effllm.modules.decoding.session import Session
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.decoding.verifiers.fly import Fly
from effllm.modules.decoding.verifiers.margin import Margin
from effllm.modules.decoding.verifiers.typical import Typical
from effllm.modules.inference.runner import ModelRunner
from effllm.modules.modeling.tiny import VOCABULARY, tiny_model

SIZE, LONGEST, END = 12, 10, 11
PROTECTED = frozenset({END, 0})


def random_rounds(count=120, seed=0):
    """Blocks of up to ten tokens, about seven in ten native, with logits of all sharpnesses."""
    random = torch.Generator().manual_seed(seed)
    rounds = []
    for _ in range(count):
        length = int(torch.randint(0, LONGEST + 1, (1,), generator=random))
        scale = 0.5 + 4 * torch.rand(length + 1, 1, generator=random)
        logits = scale * torch.randn(length + 1, SIZE, generator=random)
        native = torch.rand(length, generator=random) < 0.7
        other = torch.randint(0, SIZE, (length,), generator=random)
        tokens = torch.where(native, logits[:-1].argmax(dim=-1), other).tolist()
        if END in tokens:  # nothing is drafted after an end
            tokens = tokens[: tokens.index(END) + 1]
        rounds.append((Block(tokens), logits[: len(tokens) + 1]))
    return rounds


def record(rounds):
    recorder = Recorder(protected=PROTECTED, ends=frozenset({END}))
    for block, logits in rounds:
        recorder.verify(block, logits, torch.Generator())
    return recorder.blocks


def shorter(block, logits, tokens):
    return Block(block.tokens[:tokens]), logits[: min(len(block), tokens) + 1]


def emitted(block, decision):
    ended = bool(decision.path) and block.tokens[decision.path[-1]] == END
    return len(decision.path) + (not ended)


def rules_and_verifiers():
    for tokens in (1, 4, LONGEST):
        yield ExactRule(tokens=tokens), Exact()
        for window, threshold, check in itertools.product(
            (0, 1, 3), (0.0, 0.5, 0.9), ("full", "official")
        ):
            for measure in ("top", "normalized"):
                same = {
                    "window": window,
                    "threshold": threshold,
                    "measure": measure,
                    "window_check": check,
                }
                yield FlyRule(tokens=tokens, **same), Fly(protected=PROTECTED, **same)
        for margin in (0.0, 0.7, 3.0):
            yield MarginRule(tokens=tokens, margin=margin), Margin(margin=margin)
        yield (
            TypicalRule(tokens=tokens, epsilon=0.09, delta=0.3),
            Typical(epsilon=0.09, delta=0.3),
        )


def test_every_rule_decides_as_its_verifier_does():
    rounds = random_rounds()
    loosened = 0
    for rule, verifier in rules_and_verifiers():
        for recorded, (block, logits) in zip(record(rounds), rounds, strict=True):
            judged, rows = shorter(block, logits, rule.tokens)
            decision = verifier.verify(judged, rows, torch.Generator())
            found = replay(recorded, rule)
            assert found.emitted == emitted(judged, decision)
            assert found.judged == len(decision.events)
            assert found.loosened == decision.loosened
            regret = sum(
                np.log(one.chosen_probability / one.drafted_probability)
                for one in decision.events
                if one.loosened
            )
            assert found.regret == pytest.approx(regret, abs=1e-4)
            loosened += found.loosened
    assert loosened > 1000  # the comparison is not an empty one


@pytest.mark.parametrize("tokens", [1, 3, 6, LONGEST])
def test_a_shut_gate_or_a_long_window_is_exact(tokens):
    blocks = record(random_rounds())
    from_bits = [
        next((i for i, native in enumerate(one.native[:tokens]) if not native), None)
        for one in blocks
    ]
    expected = sum(
        len(one.tokens[:tokens]) + (not (one.ended and len(one.tokens) <= tokens))
        if stop is None
        else stop + 1
        for one, stop in zip(blocks, from_bits, strict=True)
    )
    for window, threshold in ((0, float("inf")), (tokens, 0.0), (tokens + 5, 0.0)):
        rule = FlyRule(tokens=tokens, window=window, threshold=threshold)
        found = [replay(one, rule) for one in blocks]
        assert sum(one.emitted for one in found) == expected
        assert not any(one.loosened for one in found)


@pytest.mark.parametrize("check", ["full", "official"])
def test_a_wider_window_or_a_higher_threshold_never_emits_more(check):
    blocks = record(random_rounds())
    windows, thresholds = (0, 1, 2, 3, 5, 8), (0.0, 0.2, 0.4, 0.8, 1.2)
    table = np.array(
        [
            [
                [
                    replay(
                        one, FlyRule(tokens=8, window=w, threshold=t, window_check=check)
                    ).emitted
                    for one in blocks
                ]
                for t in thresholds
            ]
            for w in windows
        ]
    )  # (windows, thresholds, blocks)
    assert (np.diff(table, axis=0) <= 0).all() and (np.diff(table, axis=1) <= 0).all()
    assert table[0, 0].sum() > table[-1, 0].sum() and table[0, 0].sum() > table[0, -1].sum()


def test_blocks_are_recorded_after_the_first_mismatch(generator):
    logits = torch.zeros(4, SIZE)
    for row, best in enumerate((3, 4, 5, 6)):
        logits[row, best] = 2.0
    logits[0, 7] = 1.5
    recorder = Recorder(protected=PROTECTED, ends=frozenset({END}))
    decision = recorder.verify(Block([7, 4, END]), logits, generator)
    (block,) = recorder.blocks
    assert decision.path == [] and decision.next_token == 3  # nothing is kept
    assert block.native == [False, True, False] and block.reach == 3 and block.ended
    first, second = block.mismatches
    assert (first.position, first.drafted, first.chosen, first.rank) == (0, 7, 3, 1)
    assert first.margin == pytest.approx(0.5) and not first.strict
    assert second.position == 2 and second.strict  # an end is protected
    law = torch.softmax(logits[0], dim=-1)
    entropy = float(-(law * law.log()).sum())
    assert first.entropy == pytest.approx(entropy)
    assert first.normalized == pytest.approx(entropy / np.log(SIZE))


@pytest.mark.parametrize("drafter", ["model", "lookup"])
def test_the_walk_is_what_exact_decoding_does_at_every_length(tiny_llama, generator, drafter):
    """The same text, and the same tokens per round, from one recording with K = 9."""
    noisy = tiny_model("llama")
    with torch.no_grad():
        for value in noisy.parameters():
            value += 0.7 * value.std() * torch.randn(value.shape, generator=generator)

    def proposer(tokens):
        if drafter == "lookup":
            return PromptLookup(tokens=tokens)
        return DraftModel(runner=ModelRunner(noisy), vocabulary=VOCABULARY, tokens=tokens)

    ends, prompt = frozenset({2}), [70, 71, 72, 73] * 6
    recorder = Recorder(ends=ends)
    text = Session(ModelRunner(tiny_llama), proposer(9), recorder, ends).generate(prompt, 40).tokens
    assert len(recorder.blocks) == len(text) - 1
    for tokens in (1, 2, 5, 9):
        exact = Session(ModelRunner(tiny_llama), proposer(tokens), Exact(), ends)
        found = exact.generate(prompt, 40)
        assert found.tokens == text
        walked = [one.emitted for one in walk(recorder.blocks, ExactRule(tokens=tokens))]
        assert walked == [one.emitted for one in found.rounds]
    if drafter == "model":
        assert sum(bool(one.mismatches) for one in recorder.blocks) > 3


def block_of(bits, margins):
    places = [i for i, bit in enumerate(bits) if bit == "0"]
    mismatches = [
        RecordedMismatch(
            position=place,
            drafted=1,
            chosen=2,
            rank=1,
            margin=margin,
            drafted_probability=0.2,
            top=0.5,
            normalized=0.5,
            entropy=1.0,
            strict=False,
        )
        for place, margin in zip(places, margins, strict=True)
    ]
    native = [bit == "1" for bit in bits]
    return RecordedBlock(
        tokens=[1] * len(bits),
        native=native,
        reach=len(bits),
        ended=False,
        mismatches=mismatches,
    )


def test_a_summary_by_hand():
    """W = 1: the first text keeps one mismatch of two, the second has none to keep.

    Exact passes 2 + 1 + 1 tokens of the first text, FLy 4 at once; both pass 5 + 1 of the second.
    """
    last = [block_of("", [])]
    prompts = {
        "a": [block_of("1010", [0.4, 9.0]), *3 * last],
        "b": [block_of("1111", []), *5 * last],
    }
    rule = FlyRule(tokens=4, window=1, threshold=0.3)
    found = summarise(prompts, rule, resamples=500)
    assert found.tau.value == pytest.approx((4 + 6) / 3)
    assert found.tau_over_exact.value == pytest.approx((10 / 3) / (10 / 5))
    assert found.loosened == 1 and found.loosened_share.value == pytest.approx(1 / 2)
    assert found.loosened_tokens.value == pytest.approx(100 / 10)
    assert found.regret.value == pytest.approx(0.4)
    assert not found.tau.known  # two texts say nothing of others
    more = {f"{name}{copy}": blocks for name, blocks in prompts.items() for copy in range(3)}
    again = summarise(more, rule, resamples=500)
    assert again.tau.value == pytest.approx(found.tau.value)
    assert again.tau.low < again.tau.value < again.tau.high
    shut = summarise(more, FlyRule(tokens=4, window=1, threshold=9.0), resamples=500)
    assert shut.regret is None and shut.tau_over_exact.low == shut.tau_over_exact.high == 1
