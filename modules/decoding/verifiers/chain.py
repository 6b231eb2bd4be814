"""What all verifiers of a chain share: native acceptance, recovery and bonus.

Row i of the target's logits judges drafted token i (from 0); the last row gives the bonus token.
Greedy: a token is native if it is the argmax. Sampled: if u < p(x) / q(x), u uniform and fresh for
each position; on rejection the token comes from norm(max(0, p - q)), which makes the output's law
exactly p (Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from effllm.modules.decoding.records import Block, Decision, MismatchEvent
from effllm.modules.decoding.sampling import Sampling, draw
from effllm.modules.errors import ConfigError
from effllm.modules.inference.choice import best_tokens


class Verifier(Protocol):
    """Judges a block from the target's logits.

    Attributes:
        sampling: the target's law.
        lossless: whether the output's law is exactly the target's.
    """

    @property
    def sampling(self) -> Sampling:
        """The target's law."""

    @property
    def lossless(self) -> bool:
        """Whether the output's law is exactly the target's."""

    def verify(self, block: Block, logits: Tensor, generator: torch.Generator) -> Decision:
        """Judge K drafted tokens by (K + 1, V) float32 logits, the root's row first."""


class TokenReader(ABC):
    """A verifier that treats some tokens of a tokenizer in a way of their own."""

    @abstractmethod
    def knowing(self, special: frozenset[int], ends: frozenset[int]) -> Self:
        """The same with the ids of special tokens, and of those that end a text."""


class ChainTest:
    """Native acceptance of one chain.

    Args:
        block: a chain of K tokens.
        logits: (K + 1, V) float32.
        sampling: the target's law.
        generator: of all draws; consumed in the same order whatever is accepted.

    Attributes:
        native: whether the target itself would have chosen each token.
    """

    def __init__(
        self, block: Block, logits: Tensor, sampling: Sampling, generator: torch.Generator
    ) -> None:
        if block.parents is not None:
            raise ConfigError("this verifier judges chains; give it a proposer that drafts chains")
        self.block, self.logits, self.sampling, self.generator = block, logits, sampling, generator
        self._rows: dict[int, Tensor] = {}
        if sampling.greedy:
            self.best = best_tokens(logits)
            self.native = [x == y for x, y in zip(block.tokens, self.best, strict=False)]
        else:
            uniform = torch.rand(len(block), generator=generator).to(logits.device)
            drafted = self.drafted_probabilities
            asked = torch.ones_like(drafted)
            if block.laws is not None:
                asked = block.laws.gather(1, self.tokens[:, None])[:, 0]
            self.native = (uniform * asked < drafted).tolist()

    @cached_property
    def tokens(self) -> Tensor:
        """(K,) the drafted tokens."""
        return torch.tensor(self.block.tokens, dtype=torch.long, device=self.logits.device)

    @cached_property
    def law(self) -> Tensor:
        """(K + 1, V) the target's probabilities."""
        return self.sampling.law(self.logits)

    def law_at(self, position: int) -> Tensor:
        """(V,) one row of `law`; most rounds end early, so the others need not be computed."""
        if position not in self._rows:
            self._rows[position] = self.sampling.law(self.logits[position : position + 1])[0]
        return self._rows[position]

    @property
    def drafted_probabilities(self) -> Tensor:
        """(K,) of the drafted tokens under the target."""
        return self.law[:-1].gather(1, self.tokens[:, None])[:, 0]

    def recover(self, position: int) -> int:
        """The target's token in place of the drafted one at `position`."""
        if self.sampling.greedy:
            return int(self.best[position])
        law = self.law_at(position)
        if self.block.laws is None:
            residual = law.clone()
            residual[self.block.tokens[position]] = 0
        else:
            residual = (law - self.block.laws[position]).clamp_min(0)
        total = residual.sum()
        return draw(residual / total if float(total) > 1e-12 else law, self.generator)

    def bonus(self) -> int:
        """The target's token after the whole block."""
        if self.sampling.greedy:
            return int(self.best[len(self.block)])
        return draw(self.law_at(len(self.block)), self.generator)

    def decide(
        self,
        accepted: Sequence[bool],
        *,
        recover: Callable[[int], int] | None = None,
        gates: Sequence[float | None] | None = None,
    ) -> Decision:
        """Keep the tokens before the first that is not accepted.

        Args:
            accepted: per drafted token.
            recover: the token in place of the first rejected one; `self.recover` if None.
            gates: gate measure per position, for the records.
        """
        kept = next((i for i, one in enumerate(accepted) if not one), len(self.block))
        full = kept == len(self.block)
        token = self.bonus() if full else (recover or self.recover)(kept)
        events = [
            self._event(position, kept, token, gates)
            for position in range(min(kept + 1, len(self.block)))
            if not self.native[position]
        ]
        return Decision(list(range(kept)), token, events)

    def _event(
        self, position: int, kept: int, token: int, gates: Sequence[float | None] | None
    ) -> MismatchEvent:
        law, drafted = self.law_at(position), self.block.tokens[position]
        chosen = token if position == kept else best_tokens(law[None])[0]
        return MismatchEvent(
            position=position,
            drafted=drafted,
            chosen=chosen,
            drafted_probability=float(law[drafted]),
            chosen_probability=float(law[chosen]),
            rank=int((law > law[drafted]).sum()),
            gate=None if gates is None else gates[position],
            loosened=position < kept,
        )
