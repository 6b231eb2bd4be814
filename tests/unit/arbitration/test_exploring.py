"""Tries of outcomes: exact decoding, decisions that happened, counts of a block engine."""

import pytest
import torch

from effllm.modules.arbitration.exploring import (
    Pair,
    explore,
    finish_alone,
    finish_null_forks,
    margin_for,
)
from effllm.modules.arbitration.forks import Forks
from effllm.modules.arbitration.observations import FEATURES, TokenClasses
from effllm.modules.arbitration.problems import Problem
from effllm.modules.arbitration.stepping import ModelStepper, SecondChoice
from effllm.modules.modeling.tiny import tiny_model

END, SIZE = 2, 32


class Scripted:
    """A model that says what a function of everything read says; the test writes the function."""

    def __init__(self, says):
        self.says, self.read = says, []

    def begin(self, prompts):
        self.read = prompts.tolist()
        return self._logits()

    def step(self, rows, tokens):
        self.read = [
            [*self.read[row], token]
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True)
        ]
        return self._logits()

    def _logits(self):
        logits = torch.zeros(len(self.read), SIZE)
        for row, text in enumerate(self.read):
            logits[row, self.says(text)] = 3.0
        return logits


def pair_of(target, draft, *, block=4, decisions=20, budget=9):
    classes = TokenClasses([f"t{number}" for number in range(SIZE)], frozenset({0, END}))
    return Pair(target, draft, classes, END, block, decisions, budget)


def problem(prompt, answer=(5,)):
    return Problem("one", "test", tuple(prompt), tuple((one,) for one in answer), "x")


def random_pair(block, **limits):
    models = [
        tiny_model("llama", seed=seed, vocab_size=SIZE, eos_token_id=END).double()
        for seed in (0, 1)
    ]
    return pair_of(*(ModelStepper(model) for model in models), block=block, **limits)


def prompts(count, length=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, SIZE, (count, length), generator=generator)


@pytest.mark.parametrize("block", [0, 1, 2, 5])
def test_always_target_is_greedy_decoding_of_the_target(block):
    """Token for token, the end and the budget inside a block, in float64."""
    pair = random_pair(block, decisions=3)
    asked = prompts(50)
    branches = explore(pair, [problem(row) for row in asked.tolist()])
    leaves = branches.walk(torch.zeros(len(branches.problem), dtype=torch.bool))
    alone = finish_alone(pair.target, asked, END, pair.budget)
    assert torch.equal(branches.outputs[leaves], alone)
    lengths = branches.count("tokens")[leaves].tolist()
    for row, output, length in zip(asked, alone.tolist(), lengths, strict=True):
        text = row.clone()
        for token in output[:length]:
            logits = pair.target.model(input_ids=text[None]).logits[0, -1]
            assert int(logits.argmax()) == token
            text = torch.cat([text, torch.tensor([token])])
        assert length == pair.budget or output[length - 1] == END
    assert (len(branches.problem) == 0) == (block == 0)


def test_always_draft_is_the_draft_but_at_the_bonus():
    pair = random_pair(2, budget=7)
    asked = prompts(20)
    branches = explore(pair, [problem(row) for row in asked.tolist()])
    leaves = branches.walk(torch.ones(len(branches.problem), dtype=torch.bool))
    lengths = branches.count("tokens")[leaves].tolist()
    for row, output, length in zip(asked, branches.outputs[leaves].tolist(), lengths, strict=True):
        text = row.clone()
        for place, token in enumerate(output[:length]):
            targets = place % 3 == 0 or place == pair.budget - 1
            model = (pair.target if targets else pair.draft).model
            assert int(model(input_ids=text[None]).logits[0, -1].argmax()) == token
            text = torch.cat([text, torch.tensor([token])])


def test_decisions_after_the_first_rejection_did_not_happen():
    """Mismatches at 2, 3 and 5 of a block, actions 1, 0, 1: d1 d2 a3, and 5 is not decided yet."""
    start = 3

    def target(text):
        return 10 + len(text) - start

    def draft(text):
        place = len(text) - start
        return 20 + place if place in (2, 3, 5) else 10 + place

    pair = pair_of(Scripted(target), Scripted(draft), block=5, budget=5)
    branches = explore(pair, [problem([7] * start)])
    actions = {0: 1, 1: 0}
    accept = torch.tensor([bool(actions[int(depth)]) for depth in branches.depth])
    leaf = branches.walk(accept)
    assert branches.outputs[leaf].tolist() == [[10, 11, 22, 13, 14]]
    assert int(branches.count("decisions")[leaf]) == 2
    assert int(branches.visited(accept).sum()) == 2
    # Always rejected: d1 a2, a3, d4 a5, and a block that the budget cuts to its bonus.
    longer = pair_of(Scripted(target), Scripted(draft), block=5, budget=7)
    branches = explore(longer, [problem([7] * start)])
    rejected = branches.walk(torch.zeros(len(branches.problem), dtype=torch.bool))
    assert int(branches.count("blocks")[rejected]) == 4


@pytest.mark.parametrize(
    ("matching", "block", "budget", "blocks", "calls"),
    [
        (True, 4, 11, 2, 0),  # the prompt's token, two whole blocks with their bonus
        (True, 4, 12, 3, 0),  # and one that the budget cuts
        (False, 4, 4, 3, 2),  # every first token is rejected, and the last one is not drafted
    ],
)
def test_counts_are_those_of_a_block_engine(matching, block, budget, blocks, calls):
    pair = pair_of(
        Scripted(lambda text: 10), Scripted(lambda text: 10 if matching else 11),
        block=block, budget=budget,
    )  # fmt: skip
    branches = explore(pair, [problem([7, 7])])
    leaf = branches.walk(torch.zeros(len(branches.problem), dtype=torch.bool))
    assert int(branches.count("blocks")[leaf]) == blocks
    assert int(branches.count("calls")[leaf]) == calls
    assert int(branches.count("tokens")[leaf]) == budget
    assert bool(branches.count("truncated")[leaf])


def test_later_mismatches_than_are_arbitrated_get_the_targets_token():
    pair = pair_of(Scripted(lambda t: 10), Scripted(lambda t: 11), decisions=2, budget=6)
    branches = explore(pair, [problem([7])])
    assert len(branches.right) == 4 and int(branches.depth.max()) == 1
    everything = branches.walk(torch.ones(len(branches.problem), dtype=torch.bool))
    assert branches.outputs[everything].tolist() == [[10, 11, 11, 10, 10, 10]]


def test_rows_do_not_depend_on_the_others_of_their_lot():
    pair = random_pair(3, decisions=4)
    asked = [problem(row) for row in prompts(6).tolist()]
    whole = explore(pair, asked)
    rule = whole.observations[:, 0] > whole.observations[:, 0].median()
    together = whole.outputs[whole.walk(rule)]
    for number, one in enumerate(asked):
        alone = explore(pair, [one])
        mine = alone.observations[:, 0] > whole.observations[:, 0].median()
        assert torch.equal(alone.outputs[alone.walk(mine)][0], together[number])


def test_what_happened_before_is_seen():
    def draft(text):
        return 11 if len(text) in (3, 5) else 10

    pair = pair_of(Scripted(lambda text: 10), Scripted(draft), block=4, budget=7)
    branches = explore(pair, [problem([7])])
    seen = dict(zip(FEATURES, branches.observations.T, strict=True))
    first = branches.depth == 0
    assert seen["progress"][first].tolist() == [pytest.approx(2 / 7)]
    assert seen["phase"][first].tolist() == [0.25]
    assert seen["decisions"][first].tolist() == [0]
    for kept in (0, 1):
        second = int(branches.children[first][0, kept])
        assert seen["progress"][second] == pytest.approx(4 / 7)
        assert seen["phase"][second] == pytest.approx((3 if kept else 1) / 4)
        assert seen["accepted_share"][second] == kept
        assert seen["since_mismatch"][second] == pytest.approx(torch.tensor(2.0).log())
        assert seen["past_target_entropy"][second] == pytest.approx(
            float(seen["target_entropy"][first])
        )


def test_null_forks_take_the_targets_own_next_token():
    """The target says 10, next best 12; the draft says 11; only 10, 12, 10 is right."""

    class Second(Scripted):
        def _logits(self):
            logits = super()._logits()
            logits[:, 12] = 1.0
            return logits

    says = lambda text: 10 if len(text) < 4 else END  # noqa: E731
    pair = pair_of(Second(says), Scripted(lambda t: 11 if len(t) == 2 else says(t)), budget=5)
    asked = [problem([7], answer=(10, 12, 10))]
    branches = explore(pair, asked)
    nodes = Forks.of(branches).nodes
    assert branches.tokens[nodes].tolist() == [[10, 11, 12]]
    assert finish_null_forks(pair, asked, branches, nodes).tolist() == [True]
    assert not branches.right.any()


def test_the_target_doubts_itself_as_often_as_asked():
    pair = random_pair(4)
    asked = prompts(40)
    margin = margin_for(pair.target, asked, END, pair.budget, 2.0)
    own = pair_of(pair.target, SecondChoice(random_pair(4).target, margin), block=100)
    branches = explore(own, [problem(row) for row in asked.tolist()])
    target = branches.walk(torch.zeros(len(branches.problem), dtype=torch.bool))
    assert float(branches.count("decisions")[target].double().mean()) == pytest.approx(2.0, abs=0.1)


def test_prompts_of_several_lengths_are_refused():
    with pytest.raises(ValueError, match="one length"):
        explore(random_pair(1), [problem([7]), problem([7, 7])])
