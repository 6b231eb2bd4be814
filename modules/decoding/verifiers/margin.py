"""Margin: keep a drafted token that is nearly as likely as the target's first choice."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from effllm.modules.decoding.records import Block, Decision
from effllm.modules.decoding.sampling import Sampling
from effllm.modules.decoding.verifiers.chain import ChainTest
from effllm.modules.ranges import NonNegativeFloat


@dataclass(frozen=True, kw_only=True)
class Margin:
    """Keep x if ln p(y) - ln p(x) <= margin, y the target's most likely token.

    The simplest lossy rule there is: one knob, no window. FLy must beat it at equal quality.

    Args:
        margin: in nats; 0 = exact when greedy.
        sampling: the target's law.

    Source: llama.cpp discussion 24804 (0.3 nats), second-hand. MARS (arXiv:2601.15498) uses a
        ratio of logits, which changes when a constant is added to them; this does not.
    """

    margin: NonNegativeFloat = 0.3
    sampling: Sampling = field(default_factory=Sampling)
    lossless: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not self.margin >= 0:  # nor NaN
            raise ValueError(f"need margin >= 0, got {self.margin}")

    def verify(self, block: Block, logits: Tensor, generator: torch.Generator) -> Decision:
        """Judge K tokens by (K + 1, V) float32 logits, the root's row first."""
        test = ChainTest(block, logits, self.sampling, generator)
        log_law = torch.log_softmax(logits[:-1], dim=-1)
        drafted = log_law.gather(1, test.tokens[:, None])[:, 0]
        near = (log_law.amax(dim=-1) - drafted <= self.margin).tolist()
        return test.decide([a or b for a, b in zip(test.native, near, strict=True)])
