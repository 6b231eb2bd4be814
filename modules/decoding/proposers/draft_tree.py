"""A smaller model drafts a tree: at each depth its most likely tokens, the first of them continued.

A pass over a few tokens costs hardly more than a pass over one, while every pass of the draft
model costs; so a weak draft does better with several guesses at one place than with one guess at
several places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import MinLen

from effllm.modules.decoding.proposers.draft import ModelDrafter
from effllm.modules.decoding.records import Block
from effllm.modules.ranges import PositiveInt


@dataclass
class DraftTree(ModelDrafter):
    """Drafts a greedy chain, and beside each of its tokens the next likely ones as leaves.

    Exact verification keeps the output the target's own, at any temperature: the candidates do not
    depend on a draw.

    Args:
        runner: as in `ModelDrafter`.
        vocabulary: as in `ModelDrafter`.
        widths: candidates at each depth; as many passes of the draft model.
    """

    widths: Annotated[tuple[PositiveInt, ...], MinLen(1)] = (3,)

    def __post_init__(self) -> None:
        self.widths = tuple(self.widths)
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"need one width of at least 1 per depth, got {list(self.widths)}")

    def propose(self, ids: Sequence[int], budget: int, generator: torch.Generator) -> Block:
        """A tree of at most `budget` levels."""
        tokens: list[int] = []
        parents: list[int] = []
        continued = -1
        for width in self.widths[:budget]:
            if continued < 0:
                logits = self.runner.sync(ids)
            else:
                logits = self.runner.advance([tokens[continued]])
            candidates = self.runner.likeliest(logits, width, below=self.vocabulary)[-1]
            parents += [continued] * len(candidates)
            continued = len(tokens)
            tokens += candidates
            if candidates[0] in self._ends:
                break
        return Block(tokens, parents=parents)
