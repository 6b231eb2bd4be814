"""Arbitration in the ordinary decoding loop: a proposer that shows its logits, and a verifier.

The policy is asked once a round, about all mismatches of the block at once: what is seen at a
mismatch assumes that everything drafted before it is kept, which is just the case in which it is
reached. Decisions after the first rejection did not happen and leave no trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from effllm.modules.arbitration.observations import (
    DISTRIBUTIONS,
    TokenClasses,
    distribution_features,
)
from effllm.modules.arbitration.rules import Score
from effllm.modules.decoding.proposers.draft import ModelDrafter
from effllm.modules.decoding.records import Block, Decision
from effllm.modules.decoding.sampling import Sampling
from effllm.modules.decoding.verifiers.chain import ChainTest
from effllm.modules.errors import UnsupportedModelError
from effllm.modules.inference.choice import best_tokens
from effllm.modules.ranges import PositiveInt

_WINDOW = 8  # decisions, of the moving averages
_ENTROPIES = [DISTRIBUTIONS.index(f"{model}_entropy") for model in ("target", "draft")]


@dataclass(frozen=True)
class History:
    """What was decided in a text so far; the first token comes with the prompt.

    Attributes:
        decisions: made.
        accepted: of them, for the draft.
        since_mismatch: tokens since the last mismatch.
        since_acceptance: since the last one that was accepted.
        entropies: moving averages of target and draft over decisions.
    """

    decisions: int = 0
    accepted: int = 0
    since_mismatch: int = 1
    since_acceptance: int = 1
    entropies: tuple[float, float] = (0.0, 0.0)

    def agreed(self) -> "History":
        """After a token that both models, or the target at a bonus, chose."""
        return replace(
            self,
            since_mismatch=self.since_mismatch + 1,
            since_acceptance=self.since_acceptance + 1,
        )

    def differed(self, accepted: bool, entropies: tuple[float, float] | None) -> "History":
        """After a mismatch; `entropies` of both models there if it was decided, else None."""
        after = replace(
            self,
            since_mismatch=0,
            since_acceptance=0 if accepted else self.since_acceptance + 1,
            accepted=self.accepted + accepted,
        )
        if entropies is None:
            return after
        weight = 2 / (_WINDOW + 1) if self.decisions else 1.0
        averages = [
            old + weight * (new - old) for old, new in zip(self.entropies, entropies, strict=True)
        ]
        return replace(after, decisions=self.decisions + 1, entropies=(averages[0], averages[1]))

    def features(self, progress: float, phase: float) -> list[float]:
        """Block B of the observations."""
        return [
            *(progress, phase, _log1p(self.decisions), self.accepted / max(1, self.decisions)),
            *(_log1p(self.since_mismatch), _log1p(self.since_acceptance), *self.entropies),
        ]


def _log1p(count: int) -> float:
    return float(torch.tensor(float(count)).log1p())


@dataclass
class ShownDraft(ModelDrafter):
    """Drafts a greedy chain and keeps its logits for the arbiter.

    Args:
        runner: the draft model, with the target's whole vocabulary.
        vocabulary: of the target.
        tokens: tokens drafted per round (K).

    Attributes:
        logits: (K, V) of the last block.
        history: what was decided in this text.
        position: tokens of the text when the last block was drafted.
        budget: tokens that the text may have.

    Raises:
        UnsupportedModelError: for a draft that can predict some tokens only.
    """

    tokens: PositiveInt = 4
    logits: Tensor = field(default_factory=lambda: torch.zeros(0, 0), init=False)
    history: History = field(default_factory=History, init=False)
    position: int = field(default=0, init=False)
    budget: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.runner.token_ids is not None:
            raise UnsupportedModelError(
                "arbitration: the draft has a reduced vocabulary, so it says nothing of some of "
                "the target's tokens; give it a draft with the target's whole vocabulary"
            )

    def start(self, prompt: Sequence[int], ends: frozenset[int]) -> None:
        """Begin a new text; nothing was decided in it."""
        super().start(prompt, ends)
        self.history, self._prompt = History(), len(prompt)

    def propose(self, ids: Sequence[int], budget: int, generator: torch.Generator) -> Block:
        """Up to `tokens` tokens."""
        self.position = len(ids) - self._prompt
        self.budget = self.position + budget + 1
        drafted: list[int] = []
        rows: list[Tensor] = []
        wanted = min(budget, self.tokens)
        while len(drafted) < wanted and not (drafted and drafted[-1] in self._ends):
            logits = self.runner.advance(drafted[-1:]) if drafted else self.runner.sync(ids)
            rows.append(logits[-1, : self.vocabulary].cpu())
            drafted += best_tokens(rows[-1][None])
        self.logits = torch.stack(rows) if rows else self.logits[:0]
        return Block(drafted)


@dataclass(frozen=True, kw_only=True)
class Arbiter:
    """Keep drafted tokens that a rule prefers to the target's own.

    Args:
        score: of observations.
        threshold: the draft's token is kept where the score is above.
        draft: that drafts; its logits and its text's history are read.
        classes: of the tokens.
        decisions: mismatches of a text that are arbitrated; later ones get the target's token.
    """

    score: Score
    threshold: float
    draft: ShownDraft
    classes: TokenClasses
    decisions: PositiveInt
    sampling: Sampling = field(default_factory=Sampling, init=False)
    lossless: bool = field(default=False, init=False)

    def verify(self, block: Block, logits: Tensor, generator: torch.Generator) -> Decision:
        """Judge K tokens by (K + 1, V) float32 logits, the root's row first."""
        test = ChainTest(block, logits, self.sampling, generator)
        left = self.decisions - self.draft.history.decisions
        asked = [place for place, native in enumerate(test.native) if not native][:left]
        accepted, entropies = list(test.native), {}
        if asked:
            observations = self._observe(block, logits.cpu(), test, asked)
            verdicts = self.score(observations) > self.threshold
            for place, seen, verdict in zip(asked, observations, verdicts.tolist(), strict=True):
                accepted[place] = verdict
                entropies[place] = (float(seen[_ENTROPIES[0]]), float(seen[_ENTROPIES[1]]))
        decision = test.decide(accepted)
        history = self.draft.history
        for place in range(min(len(decision.path) + 1, len(block))):
            if test.native[place]:
                history = history.agreed()
            else:
                history = history.differed(accepted[place], entropies.get(place))
        if len(decision.path) == len(block):
            history = history.agreed()  # the bonus
        self.draft.history = history
        return decision

    def _observe(self, block: Block, logits: Tensor, test: ChainTest, asked: list[int]) -> Tensor:
        """(m, F) what is seen at mismatches, each as if all before it were accepted."""
        ours = torch.tensor([test.best[place] for place in asked])
        theirs = torch.tensor([block.tokens[place] for place in asked])
        block_a, block_d = distribution_features(
            logits[asked, : self.draft.vocabulary], self.draft.logits[asked], ours, theirs
        )
        history, context = self.draft.history, []
        for place in range(asked[-1] + 1):
            if test.native[place]:
                history = history.agreed()
                continue
            context.append(
                history.features(
                    (self.draft.position + place) / self.draft.budget, place / self.draft.tokens
                )
            )
            seen = block_a[len(context) - 1]
            history = history.differed(
                True, (float(seen[_ENTROPIES[0]]), float(seen[_ENTROPIES[1]]))
            )
        block_b = torch.tensor(context)
        block_c = self.classes.features(ours, theirs)
        return torch.cat([block_a, block_b, block_c, block_d], dim=-1)
