"""Arbitration in the decoding loop, held against the lockstep simulator and greedy decoding."""

import pytest
import torch

from effllm.modules.arbitration.engine import Arbiter, ShownDraft
from effllm.modules.arbitration.exploring import Pair, explore
from effllm.modules.arbitration.observations import TokenClasses
from effllm.modules.arbitration.problems import Problem
from effllm.modules.arbitration.rules import ALWAYS, NEVER
from effllm.modules.arbitration.stepping import ModelStepper
from effllm.modules.decoding.drafts import first_layers
from effllm.modules.decoding.proposers.base import Nothing
from effllm.modules.decoding.session import Session
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.drafting.shape import reduce_vocabulary
from effllm.modules.errors import UnsupportedModelError
from effllm.modules.inference.runner import ModelRunner
from effllm.modules.modeling.tiny import tiny_model

END, SIZE, BUDGET = 2, 32, 12
CLASSES = TokenClasses([f"t{number}" for number in range(SIZE)], frozenset({0, END}))


def models():
    return [tiny_model("llama", seed=s, vocab_size=SIZE, eos_token_id=END).double() for s in (0, 1)]


def prompts(count, length=5):
    generator = torch.Generator().manual_seed(4)
    return torch.randint(3, SIZE, (count, length), generator=generator).tolist()


def session_of(block, score, threshold, decisions):
    target, draft = models()
    proposer = ShownDraft(ModelRunner(draft), SIZE, tokens=block)
    arbiter = Arbiter(
        score=score, threshold=threshold, draft=proposer, classes=CLASSES, decisions=decisions
    )
    return Session(ModelRunner(target), proposer, arbiter, ends=frozenset({END}))


def hashed(observations):
    """A rule without sense that looks at everything."""
    weights = torch.linspace(-1, 1, observations.shape[1], dtype=torch.float64)
    return (observations.double() @ weights * 7).sin()


class Remembered:
    """A rule that keeps what it was asked up to the first rejection."""

    def __init__(self, score, threshold):
        self.score, self.threshold, self.seen = score, threshold, []

    def __call__(self, observations):
        scores = self.score(observations)
        rejected = (scores <= self.threshold).nonzero()[:, 0].tolist()
        self.seen += observations[: rejected[0] + 1 if rejected else len(scores)].unbind()
        return scores


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("decisions", [2, 6])
def test_engine_and_simulator_are_one(block, decisions):
    """Tokens, what was seen at every decision, passes and drafts, for a rule of all features."""
    target, draft = (ModelStepper(model) for model in models())
    pair = Pair(target, draft, CLASSES, END, block, decisions, BUDGET)
    taken = 0
    for prompt in prompts(12):
        branches = explore(pair, [Problem("p", "test", tuple(prompt), ((5,),), "x")])
        accept = hashed(branches.observations) > 0
        leaf = int(branches.walk(accept))
        asked = Remembered(hashed, 0.0)
        found = session_of(block, asked, 0.0, decisions).generate(prompt, BUDGET)
        length = int(branches.count("tokens")[leaf])
        assert found.tokens == branches.outputs[leaf, :length].tolist()
        assert len(found.rounds) == int(branches.count("blocks")[leaf])
        nodes = branches.visited(accept).nonzero()[:, 0]
        assert len(asked.seen) >= len(nodes) == int(branches.count("decisions")[leaf])
        for node, seen in zip(nodes.tolist(), asked.seen, strict=False):
            torch.testing.assert_close(seen, branches.observations[node], atol=1e-5, rtol=1e-5)
        taken += int(branches.count("accepted")[leaf])
    assert taken > 10


@pytest.mark.parametrize("block", [1, 3, 5])
def test_never_taking_the_draft_is_greedy_decoding(block):
    target, _ = models()
    plain = Session(ModelRunner(target), Nothing(), Exact(), ends=frozenset({END}))
    session = session_of(block, hashed, NEVER, 3)
    for prompt in prompts(10):
        assert session.generate(prompt, BUDGET).tokens == plain.generate(prompt, BUDGET).tokens


def test_a_session_forgets_the_text_before():
    session = session_of(3, hashed, 0.0, 3)
    first = [session.generate(prompt, BUDGET).tokens for prompt in prompts(3)]
    assert [session.generate(prompt, BUDGET).tokens for prompt in prompts(3)] == first


def test_after_so_many_decisions_the_target_has_its_way():
    session = session_of(3, hashed, ALWAYS, 2)
    for prompt in prompts(6):
        found = session.generate(prompt, BUDGET)
        assert sum(one.loosened for one in found.rounds) <= 2


def test_a_draft_of_some_tokens_is_refused():
    draft = first_layers(models()[0], 1)
    reduce_vocabulary(draft, torch.arange(20))
    with pytest.raises(UnsupportedModelError, match="reduced vocabulary"):
        ShownDraft(ModelRunner(draft), SIZE)
