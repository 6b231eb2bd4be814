"""Exact verification: the output's law is the target's own, for chains and trees."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from effllm.modules.decoding.records import Block, Decision
from effllm.modules.decoding.sampling import Sampling, draw
from effllm.modules.decoding.verifiers.chain import ChainTest
from effllm.modules.errors import ConfigError
from effllm.modules.inference.choice import best_tokens


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Keep what the target would have chosen itself.

    A tree is walked from its root: the target's token, greedy or drawn, decides which child to
    enter, and the first token that no child carries ends the walk. That is exact for point
    drafters, whose candidates do not depend on the draw.

    Args:
        sampling: the target's law.

    Source: Leviathan et al. (arXiv:2211.17192), algorithm 1; Chen et al. (arXiv:2302.01318).
    """

    sampling: Sampling = field(default_factory=Sampling)
    lossless: bool = field(default=True, init=False)

    def verify(self, block: Block, logits: Tensor, generator: torch.Generator) -> Decision:
        """Judge K tokens by (K + 1, V) float32 logits, the root's row first."""
        if block.parents is None:
            test = ChainTest(block, logits, self.sampling, generator)
            return test.decide(test.native)
        if block.laws is not None and not self.sampling.greedy:
            raise ConfigError("sampling from a tree needs a point drafter (a block without laws)")
        return self._walk(block, logits, generator)

    def _walk(self, block: Block, logits: Tensor, generator: torch.Generator) -> Decision:
        assert block.parents is not None
        children: dict[int, dict[int, int]] = {}
        for node, (parent, token) in enumerate(zip(block.parents, block.tokens, strict=True)):
            children.setdefault(parent, {}).setdefault(token, node)
        best = best_tokens(logits) if self.sampling.greedy else None
        path: list[int] = []
        node = -1
        while True:
            row = node + 1
            if best is not None:
                token = int(best[row])
            else:
                token = draw(self.sampling.law(logits[row : row + 1])[0], generator)
            found = children.get(node, {}).get(token)
            if found is None:
                return Decision(path, token)
            path.append(found)
            node = found
