"""What passes between proposer, verifier and session, and what a session remembers."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Drafted tokens, to be judged in one pass of the target.

    Attributes:
        tokens: K token ids.
        laws: (K, V) float32, the exact law that each token was drawn from; None for a point
            drafter (greedy, look-up), whose law is one-hot.
        parents: index of each token's parent, -1 for the last committed token; None for a chain.
            Parents come before their children.
    """

    tokens: list[int]
    laws: Tensor | None = None
    parents: list[int] | None = None

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class MismatchEvent:
    """One drafted token of a chain that the target would not have chosen.

    Attributes:
        position: in the block, from 0.
        drafted: the draft's token.
        chosen: the target's token.
        drafted_probability: of the drafted token under the target.
        chosen_probability: of the target's token under the target.
        rank: of the drafted token under the target, 0 = most likely.
        gate: the verifier's gate measure, if it has one.
        loosened: whether the verifier kept the token nevertheless.
    """

    position: int
    drafted: int
    chosen: int
    drafted_probability: float
    chosen_probability: float
    rank: int
    gate: float | None
    loosened: bool


@dataclass(frozen=True)
class Decision:
    """Which drafted tokens are kept, and the token that follows them.

    Attributes:
        path: indices of the kept tokens in the block, parents first.
        next_token: the target's token after them: recovery or bonus.
        events: mismatches up to the first rejection, in order; chains only.
    """

    path: list[int]
    next_token: int
    events: list[MismatchEvent] = field(default_factory=list)

    @property
    def loosened(self) -> int:
        """Kept tokens that the target would not have chosen."""
        return sum(event.loosened for event in self.events)


@dataclass(frozen=True)
class RoundRecord:
    """One pass of the target.

    Attributes:
        prefix: committed tokens in front of the block.
        drafted: tokens proposed.
        accepted: tokens kept.
        emitted: tokens that reached the output, after any cut at an end or the budget.
        loosened: kept tokens that the target would not have chosen.
        draft_seconds: time of the proposer.
        verify_seconds: time of the target's pass.
        decide_seconds: time of the verifier.
        commit_seconds: time of rollback and bookkeeping.
        draft_passes: model passes of the proposer.
        events: the mismatches.
    """

    prefix: int
    drafted: int
    accepted: int
    emitted: int
    loosened: int
    draft_seconds: float
    verify_seconds: float
    decide_seconds: float
    commit_seconds: float
    draft_passes: int
    events: list[MismatchEvent]


@dataclass
class Generation:
    """The output of a session.

    Attributes:
        tokens: new token ids; an ending token is included.
        text: decoded and cut at a stop string, if the session has a tokenizer; else None.
        stop: why it ended: `eos`, `stop_string`, `length`, `interrupted`.
        rounds: one record per target pass after the prompt.
        prefill_seconds: time of the pass over the prompt; None where it was not told apart.
        decode_seconds: everything after it, or in all.
    """

    tokens: list[int]
    text: str | None
    stop: str
    rounds: list[RoundRecord]
    prefill_seconds: float | None
    decode_seconds: float

    @property
    def seconds(self) -> float:
        """Time in all."""
        return (self.prefill_seconds or 0.0) + self.decode_seconds

    @property
    def acceptance_length(self) -> float:
        """Tokens emitted per target pass, bonus included (tau); 1 for plain decoding."""
        emitted = sum(one.emitted for one in self.rounds)
        return emitted / len(self.rounds) if self.rounds else 1.0
