"""Heads on the target's last hidden state draft a whole tree at once, without a model of their own.

The tree's shape is fixed: which combinations of the heads' guesses are worth a place was counted on
held-out texts. A round asks the heads once, at the last committed position. Heads that look back
along the text keep a cache of their own; it only ever sees committed tokens, so nothing in it is
rolled back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effllm.modules.decoding.proposers.base import StateReader
from effllm.modules.decoding.records import Block
from effllm.modules.heads.loaded import LoadedHeads
from effllm.modules.heads.target import FrozenTarget, frozen_weights
from effllm.modules.heads.trees import Node, optimal_tree, tree_parents
from effllm.modules.inference.cache import SlotCache
from effllm.modules.ranges import NonNegativeInt, PositiveInt


@dataclass
class HeadTree(StateReader):
    """Drafts a static tree of the heads' guesses.

    Exact verification keeps the output the target's own, at any temperature: the candidates do not
    depend on a draw.

    Args:
        heads: trained on this very target.
        model: the target; its embedding and its head serve the heads.
        nodes: of the tree, root not counted.
        widest: guesses of each head that the tree may take.

    Attributes:
        tree: ranks of every node, the chain of first guesses in front, so that keeping it moves
            nothing in the target's cache.
    """

    heads: LoadedHeads
    model: PreTrainedModel
    nodes: PositiveInt = 16
    widest: PositiveInt = 10
    passes: NonNegativeInt = field(default=0, init=False)

    def __post_init__(self) -> None:
        tree = optimal_tree(self.heads.ranks, self.nodes, self.widest)
        self.tree: list[Node] = sorted(tree, key=lambda node: (any(node), len(node), node))
        self._parents = tree_parents(self.tree)
        self._most = 1 + max((max(node) for node in self.tree), default=0)
        self._target = FrozenTarget.of(*frozen_weights(self.model), self.heads.token_ids)
        self._drafter = self.heads.drafter.to(self.model.device)

    def start(self, prompt: Sequence[int], ends: frozenset[int]) -> None:
        """Begin a new text."""
        self._ends = ends
        self._cache = SlotCache(self._drafter.cached_layers)
        self._adapted = 0  # positions whose features have been made
        self._fresh: list[Tensor] = []

    def observe(self, states: Tensor) -> None:
        """States of tokens that were committed."""
        self._fresh.append(states)

    @torch.no_grad()
    def propose(self, ids: Sequence[int], budget: int, generator: torch.Generator) -> Block:
        """The tree as deep as the budget allows; nothing stands below an ending token."""
        if budget < 1 or not self.tree:
            return Block([])
        guesses = self._guesses(ids)
        tokens: list[int] = []
        parents: list[int] = []
        places: dict[int, int] = {-1: -1}  # node of the tree -> node of the block
        for number, (node, parent) in enumerate(zip(self.tree, self._parents, strict=True)):
            above = places.get(parent)
            ended = above is not None and above >= 0 and tokens[above] in self._ends
            if above is None or ended or len(node) > budget:
                continue
            places[number] = len(tokens)
            tokens.append(guesses[len(node) - 1][node[-1]])
            parents.append(above)
        return Block(tokens, parents=parents)

    def _guesses(self, ids: Sequence[int]) -> list[list[int]]:
        """The likeliest tokens of each head, the best first."""
        self.passes += 1
        states = torch.cat(self._fresh).float()[None]
        first = self._adapted
        self._adapted, self._fresh = first + states.shape[1], []
        assert self._adapted == len(ids) - 1, "a committed token was not observed"
        if not self._drafter.reads_text:
            states, first = states[:, -1:], self._adapted - 1
        following = torch.tensor([list(ids[first + 1 :])], device=states.device)
        features = self._drafter.adapt(states, self._target.embed(following), self._cache)
        logits = self._target.logits(self._drafter.guess(features[:, -1]))[0]
        best = logits.topk(min(self._most, logits.shape[1]), dim=-1).indices
        found: list[list[int]] = self._target.token_ids[best].tolist()
        return found
