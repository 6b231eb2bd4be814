"""Whole blocks as the target judges them, from every position of its own text.

A decision remembers mismatches up to the first rejection. To ask what another window, threshold
or block length would have done, the rest of the block is needed too: which tokens after the
rejection the target would have chosen, and how open it was there. All of it is in the logits. And
since other settings begin their rounds elsewhere, there is a block for every position.
"""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from effllm.modules.decoding.records import Block, Decision
from effllm.modules.decoding.sampling import Sampling
from effllm.modules.decoding.verifiers.chain import ChainTest, TokenReader
from effllm.modules.decoding.verifiers.fly import gate_measure
from effllm.modules.inference.choice import best_tokens


@dataclass(frozen=True, kw_only=True)
class RecordedMismatch:
    """One drafted token that the target would not have chosen after the tokens before it.

    Attributes:
        position: in the block, from 0.
        drafted: the draft's token.
        chosen: the target's token.
        rank: of the drafted token under the target, 0 = most likely.
        margin: ln p(chosen) - ln p(drafted), nats.
        drafted_probability: of the drafted token under the target.
        top: entropy of the target's three most likely tokens, nats, not renormalised.
        normalized: entropy of the target's whole law over ln V, in [0, 1].
        entropy: of the target's whole law, nats.
        strict: whether FLy may not keep it whatever the gate says: one of the two tokens is
            protected, or the target gives the drafted one no probability at all.
    """

    position: int
    drafted: int
    chosen: int
    rank: int
    margin: float
    drafted_probability: float
    top: float
    normalized: float
    entropy: float
    strict: bool


@dataclass(frozen=True, kw_only=True)
class RecordedBlock:
    """What was drafted at one position and what the target thought of every token of it.

    Attributes:
        tokens: K drafted tokens; none if the proposer had nothing.
        native: K bits, whether the target would have chosen the token.
        reach: tokens up to and with the first protected one, K without one: windows end there.
        ended: whether the last drafted token ends the text, so that nothing follows it.
        mismatches: where `native` is False, in order.
    """

    tokens: list[int]
    native: list[bool]
    reach: int
    ended: bool
    mismatches: list[RecordedMismatch]


@dataclass(kw_only=True)
class Recorder(TokenReader):
    """A verifier that keeps nothing, so that each position gets a block, and remembers them all.

    The text is the target's own at temperature 0; a pass yields one token, so recording costs as
    many passes as plain decoding, and a draft each.

    Args:
        protected: token ids at which FLy accepts a match alone.
        ends: token ids that end a text.

    Attributes:
        blocks: one per position after the first token, in order.
    """

    protected: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling, init=False)
    lossless: bool = field(default=True, init=False)
    blocks: list[RecordedBlock] = field(default_factory=list, init=False)

    def knowing(self, special: frozenset[int], ends: frozenset[int]) -> Self:
        """A fresh one that knows a tokenizer's special tokens and ends."""
        return type(self)(protected=special, ends=ends)

    def take(self) -> list[RecordedBlock]:
        """The blocks since the last call; they are forgotten."""
        taken, self.blocks = self.blocks, []
        return taken

    def verify(self, block: Block, logits: Tensor, generator: torch.Generator) -> Decision:
        """Record K tokens judged by (K + 1, V) float32 logits; keep the target's next token."""
        test = ChainTest(block, logits, self.sampling, generator)
        self.blocks.append(self._record(test))
        return Decision([], best_tokens(logits)[0])

    def _record(self, test: ChainTest) -> RecordedBlock:
        tokens = test.block.tokens
        special = next((i for i, one in enumerate(tokens) if one in self.protected), len(tokens))
        return RecordedBlock(
            tokens=list(tokens),
            native=list(test.native),
            reach=min(special + 1, len(tokens)),
            ended=bool(tokens) and tokens[-1] in self.ends,
            mismatches=self._mismatches(test),
        )

    def _mismatches(self, test: ChainTest) -> list[RecordedMismatch]:
        places = [i for i, native in enumerate(test.native) if not native]
        if not places:
            return []
        law = test.law[places]  # (mismatches, V)
        drafted, chosen = test.tokens[places], law.argmax(dim=-1)
        log_law = torch.log_softmax(test.logits[places].float(), dim=-1)
        likely = law.gather(1, drafted[:, None])
        columns = {
            "position": places,
            "drafted": drafted.tolist(),
            "chosen": chosen.tolist(),
            "rank": (law > likely).sum(dim=-1).tolist(),
            "margin": (log_law.amax(dim=-1) - log_law.gather(1, drafted[:, None])[:, 0]).tolist(),
            "drafted_probability": likely[:, 0].tolist(),
            "top": gate_measure(law, "top", 3).tolist(),
            "normalized": gate_measure(law, "normalized", 3).tolist(),
            "entropy": (-torch.special.xlogy(law, law).sum(dim=-1)).tolist(),
        }
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return [RecordedMismatch(**row, strict=self._strict(row)) for row in rows]

    def _strict(self, row: dict[str, float]) -> bool:
        return (
            row["drafted_probability"] == 0
            or row["drafted"] in self.protected
            or row["chosen"] in self.protected
        )
