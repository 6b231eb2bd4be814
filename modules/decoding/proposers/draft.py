"""A smaller model drafts, one token per pass; FLy's multi-level acceleration drafts several.

With a `lookup`, the draft model is itself decoded speculatively: tokens that followed the same
n-gram before are checked in one pass of the draft model. Greedy drafts are the same with and
without it; only the number of passes falls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from effllm.modules.decoding.proposers.base import cut_after_end
from effllm.modules.decoding.proposers.lookup import NgramIndex
from effllm.modules.decoding.records import Block
from effllm.modules.decoding.sampling import Sampling, draw
from effllm.modules.inference.runner import ModelRunner
from effllm.modules.ranges import PositiveInt


@dataclass(frozen=True, kw_only=True)
class InnerLookup:
    """Multi-level acceleration: prompt lookup inside the drafter.

    Args:
        max_ngram: longest n-gram that is looked up.
        tokens: most tokens checked per pass of the draft model.

    Source: FLy (arXiv:2511.22972), code fly/models/FLy.py: n = 4, 6 tokens, earliest match.
    Deviates: the code runs a pass of constant width on a dummy candidate when nothing matches;
        here that is a pass of one token.
    """

    max_ngram: PositiveInt = 4
    tokens: PositiveInt = 6

    def __post_init__(self) -> None:
        if min(self.max_ngram, self.tokens) < 1:
            raise ValueError(f"need max_ngram >= 1 and tokens >= 1, got {self}")


@dataclass
class ModelDrafter:
    """What drafters with a causal language model of the target's tokenizer share.

    Args:
        runner: the draft model; it may predict some of the tokens only.
        vocabulary: of the target; the draft may be narrower or padded.
    """

    runner: ModelRunner
    vocabulary: PositiveInt

    @property
    def passes(self) -> int:
        """Passes of the draft model."""
        return self.runner.passes

    def start(self, prompt: Sequence[int], ends: frozenset[int]) -> None:
        """Begin a new text; the prompt is read with the first draft."""
        self.runner.reset()
        self._ends = ends


@dataclass
class DraftModel(ModelDrafter):
    """Drafts a chain.

    Args:
        runner: as in `ModelDrafter`.
        vocabulary: as in `ModelDrafter`.
        tokens: tokens drafted per round (K).
        sampling: the draft's law; greedy drafts are points.
        lookup: multi-level acceleration; greedy drafts only.
    """

    tokens: PositiveInt = 4
    sampling: Sampling = field(default_factory=Sampling)
    lookup: InnerLookup | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"need tokens >= 1, got {self.tokens}")
        if self.lookup is not None and not self.sampling.greedy:
            raise ValueError("lookup inside the drafter needs greedy drafts (temperature 0)")
        self._index = NgramIndex(self.lookup.max_ngram if self.lookup else 1)

    def start(self, prompt: Sequence[int], ends: frozenset[int]) -> None:
        """Begin a new text; the prompt is read with the first draft."""
        super().start(prompt, ends)
        self._index = NgramIndex(self.lookup.max_ngram if self.lookup else 1)

    def propose(self, ids: Sequence[int], budget: int, generator: torch.Generator) -> Block:
        """Up to `tokens` tokens; their laws too if they were drawn."""
        wanted = min(budget, self.tokens)
        if wanted < 1:
            return Block([])
        if self.lookup is not None:
            return Block(cut_after_end(self._draft_by_lookup(ids, wanted), self._ends))
        drafted: list[int] = []
        laws: list[Tensor] = []
        logits = self.runner.sync(ids)
        while True:
            if self.sampling.greedy:
                token = self._best(logits)[-1]
            else:
                laws.append(self._spread(self.sampling.law(self._known(logits[-1:]))[0]))
                token = draw(laws[-1], generator)
            drafted.append(token)
            if len(drafted) == wanted or token in self._ends:
                return Block(drafted, torch.stack(laws) if laws else None)
            logits = self.runner.advance([token])

    def _draft_by_lookup(self, ids: Sequence[int], wanted: int) -> list[int]:
        assert self.lookup is not None
        self._index.sync(ids)
        drafted = self._best(self.runner.sync(ids))
        self._index.extend(drafted)
        while len(drafted) < wanted and drafted[-1] not in self._ends:
            room = min(self.lookup.tokens, wanted - len(drafted) - 1)
            guess = self._index.continuation(room, "earliest") if room > 0 else []
            prefix = len(self.runner.ids)
            best = self._best(self.runner.advance([drafted[-1], *guess]))
            right = next((i for i, one in enumerate(guess) if one != best[i]), len(guess))
            self.runner.rollback_to(prefix + 1 + right)
            fresh = [*guess[:right], best[right]]
            drafted += fresh
            self._index.extend(fresh)
        return drafted

    def _known(self, logits: Tensor) -> Tensor:
        """Only columns that the target knows: heads may be padded."""
        return logits if self.runner.token_ids is not None else logits[:, : self.vocabulary]

    def _best(self, logits: Tensor) -> list[int]:
        """The most likely token of each row."""
        return [row[0] for row in self.runner.likeliest(logits, 1, below=self.vocabulary)]

    def _spread(self, law: Tensor) -> Tensor:
        """A law over the target's ids."""
        if self.runner.token_ids is None:
            return torch.nn.functional.pad(law, (0, self.vocabulary - len(law)))
        return law.new_zeros(self.vocabulary).index_copy(0, self.runner.token_ids, law)
