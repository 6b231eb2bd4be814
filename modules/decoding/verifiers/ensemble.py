"""Static ensemble: decode from a fixed mixture of target and draft."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from effllm.modules.decoding.records import Block, Decision
from effllm.modules.decoding.sampling import Sampling
from effllm.modules.decoding.verifiers.chain import ChainTest
from effllm.modules.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Exact speculative sampling from nu = w p + (1 - w) q instead of p.

    The residual of nu against q is that of p against q, so only the test changes: u < nu(x)/q(x).

    Args:
        weight: w of the target; 1 = exact.
        sampling: the target's law; must draw.

    Source: transformers 5 `assistant_ensemble_weight`; DIVERSED (arXiv:2604.07622), second-hand.
    """

    weight: float = 0.8
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    lossless: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"need 0 <= weight <= 1, got {self.weight}")
        if self.sampling.greedy:
            raise ConfigError("a static ensemble mixes laws: give it a temperature above 0")

    def verify(self, block: Block, logits: Tensor, generator: torch.Generator) -> Decision:
        """Judge K tokens by (K + 1, V) float32 logits, the root's row first."""
        test = ChainTest(block, logits, self.sampling, generator)
        uniform = torch.rand(len(block), generator=generator).to(logits.device)
        asked = torch.ones_like(uniform)
        if block.laws is not None:
            asked = block.laws.gather(1, test.tokens[:, None])[:, 0]
        mixed = self.weight * test.drafted_probabilities + (1 - self.weight) * asked
        return test.decide((uniform * asked < mixed).tolist())
