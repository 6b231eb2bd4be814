"""Typical acceptance: keep a drafted token whose probability is high for how open the target is."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from effllm.modules.decoding.records import Block, Decision
from effllm.modules.decoding.sampling import Sampling, draw
from effllm.modules.decoding.verifiers.chain import ChainTest
from effllm.modules.ranges import NonNegativeFloat


@dataclass(frozen=True, kw_only=True)
class Typical:
    """Keep x if p(x) > min(epsilon, delta * exp(-H(p))), H in nats of the whole law.

    Args:
        epsilon: a probability that is always enough.
        delta: share of the probability that an even law of the same entropy would give.
        sampling: the target's law; it also gives the token after the kept ones.

    Source: Medusa (arXiv:2401.10774); Spec-Bench model/medusa/utils.py, epsilon 0.09, delta 0.3.
    Deviates: Medusa falls back to exact matching at temperature 0; here the rule is applied to the
        plain softmax then, so that it can be compared with FLy. It judges every drafted token;
        Medusa's first token comes from its own base head.
    """

    epsilon: NonNegativeFloat = 0.09
    delta: NonNegativeFloat = 0.3
    sampling: Sampling = field(default_factory=Sampling)
    lossless: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1 or not self.delta >= 0:
            raise ValueError(
                f"need 0 <= epsilon <= 1 and delta >= 0, got {self.epsilon}, {self.delta}"
            )

    def verify(self, block: Block, logits: Tensor, generator: torch.Generator) -> Decision:
        """Judge K tokens by (K + 1, V) float32 logits, the root's row first."""
        test = ChainTest(block, logits, self.sampling, generator)
        accepted = [False] * len(block)
        for position, token in enumerate(block.tokens):
            if not (test.native[position] or self._is_typical(test.law_at(position), token)):
                break  # the round ends here; what follows need not be judged
            accepted[position] = True
        if self.sampling.greedy:
            return test.decide(accepted)
        return test.decide(accepted, recover=lambda at: draw(test.law_at(at), generator))

    def _is_typical(self, law: Tensor, token: int) -> bool:
        """Whether a token is likely enough under a (V,) law."""
        entropy = -torch.special.xlogy(law, law).sum()
        bound = torch.clamp(self.delta * torch.exp(-entropy), max=self.epsilon)
        return bool(law[token] > bound)
