"""Mentored decoding: accept as much as a bound on the divergence from the target allows."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from effllm.modules.decoding.records import Block, Decision
from effllm.modules.decoding.sampling import Sampling, draw
from effllm.modules.decoding.verifiers.chain import ChainTest
from effllm.modules.errors import ConfigError

_HALVINGS = 40


@dataclass(frozen=True, kw_only=True)
class Mentored:
    """Maximise acceptance subject to KL(p || output) <= divergence at every position.

    The output's law is m = max(min(q, p / alpha), p / beta): what the draft asks for, but at most
    1 / alpha and at least 1 / beta of what the target would give, alpha <= 1 <= beta. For a given
    alpha, beta makes m sum to one; the smallest alpha within the bound accepts most. In other words
    m = p clip(q / p, 1 / beta, 1 / alpha).

    Args:
        divergence: bound D in nats per position; 0 = exact.
        sampling: the target's law; must draw.

    Source: mentored decoding (github.com/vivien000/mentored_decoding), second-hand; the form of m
        and the search for alpha are ours.
    """

    divergence: float = 0.1
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    lossless: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not self.divergence >= 0:  # nor NaN
            raise ValueError(f"need divergence >= 0, got {self.divergence}")
        if self.sampling.greedy:
            raise ConfigError("mentored decoding mixes laws: give it a temperature above 0")

    def verify(self, block: Block, logits: Tensor, generator: torch.Generator) -> Decision:
        """Judge K tokens by (K + 1, V) float32 logits, the root's row first."""
        test = ChainTest(block, logits, self.sampling, generator)
        uniform = torch.rand(len(block), generator=generator)
        outputs: list[Tensor] = []
        accepted: list[bool] = []
        for position, token in enumerate(block.tokens):
            drafted = _one_hot(token, test.law_at(position))
            if block.laws is not None:
                drafted = block.laws[position]
            outputs.append(mentored_law(test.law_at(position), drafted, self.divergence))
            accepted.append(
                float(uniform[position]) * float(drafted[token]) < float(outputs[-1][token])
            )
            if not accepted[-1]:
                break
        accepted += [False] * (len(block) - len(accepted))

        def recover(position: int) -> int:
            drafted = _one_hot(block.tokens[position], test.law_at(position))
            if block.laws is not None:
                drafted = block.laws[position]
            residual = (outputs[position] - drafted).clamp_min(0)
            return draw(residual / residual.sum(), generator)

        return test.decide(accepted, recover=recover)


def mentored_law(target: Tensor, drafted: Tensor, divergence: float) -> Tensor:
    """The law closest to the draft's within KL(target || law) <= divergence.

    Args:
        target: (V,) p.
        drafted: (V,) q.
        divergence: bound in nats.

    Returns:
        (V,) float32; equals `target` for divergence 0.
    """
    p, q = target.double(), drafted.double()
    known = p > 0
    ratio, order = (q[known] / p[known]).sort()
    weight = p[known][order]
    low, high = 0.0, 1.0  # alpha: 1 gives p itself, towards 0 the draft has its way
    best = torch.ones_like(ratio)
    for _ in range(_HALVINGS if divergence > 0 else 0):
        alpha = (low + high) / 2
        clipped = _clip(ratio, weight, 1 / alpha)
        if float(-(weight * clipped.log()).sum()) <= divergence:
            best, high = clipped, alpha
        else:
            low = alpha
    law = torch.zeros_like(p)
    law[known.nonzero()[order, 0]] = weight * best
    return (law / law.sum()).float()


def _clip(ratio: Tensor, weight: Tensor, cap: float) -> Tensor:
    """The ratio q / p, at most `cap` and at least the floor with which p times it sums to one.

    Args:
        ratio: (n,) q / p, rising.
        weight: (n,) p in the same order.
        cap: 1 / alpha.
    """
    capped = ratio.clamp(max=cap)
    below = weight.cumsum(0) - weight  # p of the smaller ratios
    above = (weight * capped).flip(0).cumsum(0).flip(0)  # mass of this ratio and the larger ones
    raised = int((capped * below + above < 1).sum())  # ratios that the floor lies above
    if raised == 0:
        return capped
    rest = above[raised] if raised < len(ratio) else 0.0
    floor = (1 - rest) / weight[:raised].sum()
    return capped.clamp(min=floor)


def _one_hot(token: int, like: Tensor) -> Tensor:
    law = torch.zeros_like(like)
    law[token] = 1
    return law
