"""What another rule would have made of recorded blocks; no model runs.

Each rule is applied to the first K drafted tokens of every recorded block. Within a block that is
exact: it is the decision the rule would have taken. Across blocks it is an approximation: after a
loosened token, or with another K, the next block would have begun elsewhere in another text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from effllm.modules.decoding.recording import RecordedBlock
from effllm.modules.decoding.verifiers.fly import Measure, Window, loosen
from effllm.modules.evaluation.intervals import Interval, bootstrap


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
    """A rule over all prompts; intervals are 95 %, by bootstrap over prompts.

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


def totals(prompts: Prompts, rule: Rule) -> NDArray[np.float64]:
    """(prompts, 5) sums per prompt: rounds, emitted, judged, loosened, regret."""
    rows = []
    for blocks in prompts.values():
        found = [replay(block, rule) for block in blocks]
        rows.append(
            [len(found)]
            + [sum(getattr(o, key) for o in found) for key in ("emitted", "judged", "loosened")]
            + [sum(one.regret for one in found)]
        )
    return np.array(rows, dtype=np.float64)


def summarise(prompts: Prompts, rule: Rule, *, resamples: int) -> Summary:
    """What a rule would have made of all blocks.

    Args:
        prompts: prompt id -> its recorded blocks; prompts without any are left out beforehand.
        rule: to be tried.
        resamples: of the bootstrap.
    """
    mine = totals(prompts, rule)
    exact = totals(prompts, ExactRule(tokens=rule.tokens))

    def ratio(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> Interval:
        return bootstrap(
            np.stack([top, bottom], axis=1),
            # A resample may miss every prompt with a count; its 0 / 0 counts as 0.
            transform=lambda means: means[..., 0] / np.maximum(means[..., 1], 1e-12),
            resamples=resamples,
        )

    rounds, emitted, judged, loosened, regret = mine.T
    return Summary(
        tau=ratio(emitted, rounds),
        tau_over_exact=ratio(emitted, exact[:, 1]),
        loosened_share=ratio(loosened, judged) if judged.any() else None,
        loosened_tokens=ratio(100 * loosened, emitted),
        regret=ratio(regret, loosened) if loosened.any() else None,
        loosened=int(loosened.sum()),
    )
