"""What another rule would have made of recorded blocks; no model runs.

A text is walked in rounds: the block at the current position is judged by the rule, as many tokens
are passed as the round emits, and the next round begins there. For exact verification with a
deterministic drafter that is what decoding does, for every K. For lossy rules each round is exact
by itself, but the walk is an approximation: it goes on along the target's own text, where real
decoding would go on after the loosened token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from effllm.modules.decoding.recording import RecordedBlock
from effllm.modules.decoding.verifiers.fly import Measure, Window, loosen
from effllm.modules.evaluation.intervals import Interval, estimate


class Rule(Protocol):
    """Which drafted tokens of a recorded block are accepted."""

    @property
    def tokens(self) -> int:
        """K: only so many drafted tokens of the block are judged."""

    def accepts(self, block: RecordedBlock) -> list[bool]:
        """One bit for each of the first K drafted tokens; kept up to the first False."""


@dataclass(frozen=True, kw_only=True)
class ExactRule:
    """Only what the target would have chosen; see `verifiers.exact`."""

    tokens: int

    def accepts(self, block: RecordedBlock) -> list[bool]:
        """The native bits."""
        return block.native[: self.tokens]


@dataclass(frozen=True, kw_only=True)
class FlyRule:
    """Gate and window; the fields mean what they mean in `verifiers.fly.Fly`."""

    tokens: int
    window: int
    threshold: float
    measure: Measure = "top"
    window_check: Window = "full"

    def accepts(self, block: RecordedBlock) -> list[bool]:
        """The rule `loosen` on the recorded gate values."""
        native = block.native[: self.tokens]
        open_at = [False] * len(native)
        for one in block.mismatches:
            if one.position < len(native):
                value = one.top if self.measure == "top" else one.normalized
                open_at[one.position] = value >= self.threshold and not one.strict
        length = min(len(native), block.reach)
        return loosen(native, open_at, self.window, self.window_check, length)


@dataclass(frozen=True, kw_only=True)
class MarginRule:
    """Nearly as likely as the target's choice; see `verifiers.margin`."""

    tokens: int
    margin: float

    def accepts(self, block: RecordedBlock) -> list[bool]:
        """Native, or within the margin."""
        accepted = block.native[: self.tokens]
        for one in block.mismatches:
            if one.position < len(accepted):
                accepted[one.position] = one.margin <= self.margin
        return accepted


@dataclass(frozen=True, kw_only=True)
class TypicalRule:
    """Likely enough for how open the target is; see `verifiers.typical`."""

    tokens: int
    epsilon: float
    delta: float

    def accepts(self, block: RecordedBlock) -> list[bool]:
        """Native, or above the bound."""
        accepted = block.native[: self.tokens]
        for one in block.mismatches:
            if one.position < len(accepted):
                bound = min(self.epsilon, self.delta * float(np.exp(-one.entropy)))
                accepted[one.position] = one.drafted_probability > bound
        return accepted


@dataclass(frozen=True)
class Outcome:
    """What a rule makes of one block.

    Attributes:
        emitted: tokens that reach the output, the target's own after the kept ones included.
        judged: mismatches up to and with the first rejected one.
        loosened: mismatches that were kept.
        regret: sum over them of ln p(chosen) - ln p(drafted), nats.
    """

    emitted: int
    judged: int
    loosened: int
    regret: float


def replay(block: RecordedBlock, rule: Rule) -> Outcome:
    """Apply a rule to one block."""
    accepted = rule.accepts(block)
    kept = next((i for i, one in enumerate(accepted) if not one), len(accepted))
    ended = block.ended and kept == len(block.tokens)
    loosened = [one.margin for one in block.mismatches if one.position < kept]
    rejected = kept < len(accepted)
    return Outcome(
        emitted=kept + (not ended),
        judged=len(loosened) + rejected,
        loosened=len(loosened),
        regret=sum(loosened),
    )


@dataclass(frozen=True)
class Summary:
    """A rule over all prompts; intervals are 95 %, over prompts.

    Attributes:
        tau: tokens per pass of the target.
        tau_over_exact: over tau of exact verification at the same K, paired by prompt.
        loosened_share: mismatches kept over mismatches judged; None if none was judged.
        loosened_tokens: kept mismatches per 100 tokens.
        regret: mean ln p(chosen) - ln p(drafted) of kept mismatches, nats; None if none was kept.
        loosened: number of kept mismatches.
    """

    tau: Interval
    tau_over_exact: Interval
    loosened_share: Interval | None
    loosened_tokens: Interval
    regret: Interval | None
    loosened: int


Prompts = Mapping[str, Sequence[RecordedBlock]]


def walk(blocks: Sequence[RecordedBlock], rule: Rule) -> list[Outcome]:
    """The rounds of one text, given the blocks of all its positions."""
    rounds = []
    position = 0
    while position < len(blocks):
        rounds.append(replay(blocks[position], rule))
        position += rounds[-1].emitted
    return rounds


def totals(prompts: Prompts, rule: Rule) -> NDArray[np.float64]:
    """(prompts, 5) sums per prompt: rounds, emitted, judged, loosened, regret."""
    keys = ("emitted", "judged", "loosened", "regret")
    walks = [walk(blocks, rule) for blocks in prompts.values()]
    return np.array(
        [[len(found), *(sum(getattr(o, key) for o in found) for key in keys)] for found in walks],
        dtype=np.float64,
    )


def summarise(prompts: Prompts, rule: Rule, *, resamples: int) -> Summary:
    """What a rule would have made of all texts.

    Args:
        prompts: prompt id -> the blocks of all its positions, at least one.
        rule: to be tried.
        resamples: of the bootstrap.
    """
    mine = totals(prompts, rule)
    exact = totals(prompts, ExactRule(tokens=rule.tokens))

    def ratio(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> Interval:
        return estimate(
            np.stack([top, bottom], axis=1),
            # A resample may miss every prompt with a count; its 0 / 0 counts as 0.
            transform=lambda means: means[..., 0] / np.maximum(means[..., 1], 1e-12),
            bounds=(0, np.inf),
            resamples=resamples,
        )

    rounds, emitted, judged, loosened, regret = mine.T
    over_exact = estimate(
        np.concatenate([mine[:, :2], exact[:, :2]], axis=1),
        transform=lambda means: means[..., 1] / means[..., 0] * means[..., 2] / means[..., 3],
        bounds=(0, np.inf),
        resamples=resamples,
    )
    return Summary(
        tau=ratio(emitted, rounds),
        tau_over_exact=over_exact,
        loosened_share=ratio(loosened, judged) if judged.any() else None,
        loosened_tokens=ratio(100 * loosened, emitted),
        regret=ratio(regret, loosened) if loosened.any() else None,
        loosened=int(loosened.sum()),
    )
