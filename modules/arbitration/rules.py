"""Rules that choose between the two tokens of a mismatch, all behind one interface.

A rule gives every observation a score; above its threshold the draft's token is taken. Thresholds
are chosen on validation problems, by one procedure for all, so that no rule is favoured.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.arbitration.observations import column
from effllm.modules.ranges import Fraction, Seed

Score = Callable[[Tensor], Tensor]
"""(n, F) observations -> (n,) scores, larger = rather the draft's token. A `Policy` is one, too."""

NEVER, ALWAYS = float("inf"), float("-inf")
"""Thresholds of always-target and always-draft, under any score."""


@dataclass(frozen=True, kw_only=True)
class EntropyGate:
    """Take the draft's token where the target's three likeliest tokens are undecided.

    Source: the gate of FLy (arXiv:2511.22972), without its window.
    """

    def __call__(self, observations: Tensor) -> Tensor:
        """Top-3 entropy of the target, nats."""
        return column(observations, "target_top3_entropy")


@dataclass(frozen=True, kw_only=True)
class SmallMargin:
    """Take the draft's token where the target finds it nearly as likely as its own."""

    def __call__(self, observations: Tensor) -> Tensor:
        """Ln p(draft's) - ln p(target's)."""
        return -column(observations, "target_margin")


@dataclass(frozen=True, kw_only=True)
class Chow:
    """Take the draft's token where the draft is sure of it: max q >= 1 - a.

    Source: speculative cascades (arXiv:2405.19261), Chow.
    """

    def __call__(self, observations: Tensor) -> Tensor:
        """Chance of the draft's token under the draft."""
        return column(observations, "draft_log_p_draft").exp()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Take the draft's token where the draft is about as sure as the target: max q >= max p - a.

    Source: speculative cascades (arXiv:2405.19261), Diff.
    """

    def __call__(self, observations: Tensor) -> Tensor:
        """Max q - max p."""
        return -column(observations, "difference_of_maxima")


@dataclass(frozen=True, kw_only=True)
class Optimal:
    """Difference, with room that grows with the distance of the two laws: max q >= max p - a TV.

    Source: speculative cascades (arXiv:2405.19261), OPT.
    Deviates: TV at temperature 1 on both heads; of one-hot laws it is 1 at every mismatch.
    """

    def __call__(self, observations: Tensor) -> Tensor:
        """(max q - max p) / TV."""
        distance = column(observations, "total_variation").clamp_min(1e-6)
        return -column(observations, "difference_of_maxima") / distance


@dataclass(frozen=True, kw_only=True)
class NearLaws:
    """Take the draft's token where the two laws are near: KL(p, q) small.

    Source: the KL judge of arXiv:2601.04766, second-hand.
    """

    def __call__(self, observations: Tensor) -> Tensor:
        """-KL(target, draft), nats."""
        return -column(observations, "kl_target_draft")


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Take the token that w p + (1 - w) q prefers of the two, for some weight w.

    Source: static ensembles, transformers' `assistant_ensemble_weight`, second-hand.
    """

    def __call__(self, observations: Tensor) -> Tensor:
        """The largest w at which the draft's token still wins."""
        p_gain, q_gain = (
            column(observations, f"{model}_log_p_target").exp()
            - column(observations, f"{model}_log_p_draft").exp()
            for model in ("target", "draft")
        )  # of the target's token over the draft's: positive under p, negative under q
        return -q_gain / (p_gain - q_gain).clamp_min(1e-9)


@dataclass(frozen=True, kw_only=True)
class AtRandom:
    """Take the draft's token by chance, whatever is seen.

    Args:
        rate: chance.
        seed: of the draws; one for every row of the observations.
    """

    rate: Fraction
    seed: Seed

    def __call__(self, observations: Tensor) -> Tensor:
        """1 with the chance `rate`, else 0."""
        generator = torch.Generator().manual_seed(self.seed)
        return (torch.rand(len(observations), generator=generator) < self.rate).float()


ONE_NUMBER: dict[str, Score] = {
    "entropy": EntropyGate(),
    "margin": SmallMargin(),
    "chow": Chow(),
    "difference": Difference(),
    "optimal": Optimal(),
    "kl": NearLaws(),
    "ensemble": Ensemble(),
}
"""Rules that look at one number each."""
