"""All that can happen to problems, whatever the arbiter decides.

With greedy models the outcome depends on the problem and the actions alone. A node is a mismatch
that is decided, with what is observed there; it has two children, for the target's token (0) and
the draft's (1), each another node or a leaf. A leaf is a finished output with its verdict and its
counts. Every rule is then judged by a walk, exactly and without a model; so is the gradient of the
expected reward.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

COUNTS = ("blocks", "calls", "tokens", "decisions", "accepted", "truncated")
"""Columns of a leaf's counts: target passes, policy calls, tokens, decisions, those accepted, and
whether the budget cut the output."""


@dataclass(frozen=True)
class Branches:
    """The tries of N problems, n nodes and m leaves in all.

    A reference to a child is a node's number, or -1 - (a leaf's number). Parents come before their
    children.

    Attributes:
        roots: (N,) references; a leaf where the models never differ.
        problem: (n,) of every node.
        depth: (n,) decisions before it.
        children: (n, 2) references, by action.
        observations: (n, F) float32.
        tokens: (n, 3) the target's token, the draft's, and the target's best beside both.
        position: (n,) tokens emitted before it.
        right: (m,) bool, the verdict.
        answer: (m,) int, equal for outputs of one problem that say the same.
        counts: (m, len(COUNTS)) int.
        outputs: (m, T) emitted tokens, 0 where there is none.
    """

    roots: Tensor
    problem: Tensor
    depth: Tensor
    children: Tensor
    observations: Tensor
    tokens: Tensor
    position: Tensor
    right: Tensor
    answer: Tensor
    counts: Tensor
    outputs: Tensor

    def __len__(self) -> int:
        return len(self.roots)

    def count(self, name: str) -> Tensor:
        """(m,) one of `COUNTS`."""
        return self.counts[:, COUNTS.index(name)]

    def walk(self, accept: Tensor) -> Tensor:
        """(N,) leaves that a rule ends in, given (n,) bool: whether it takes the draft's token."""
        leaves, _ = self.visit(self.roots, accept.long().__getitem__)
        return leaves

    def visited(self, accept: Tensor) -> Tensor:
        """(n,) bool: nodes that a rule meets on its way."""
        met = torch.zeros(len(self.problem), dtype=torch.bool)
        _, nodes = self.visit(self.roots, accept.long().__getitem__)
        for now in nodes:
            met[now] = True
        return met

    def visit(
        self, start: Tensor, choose: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Walk down from (R,) references; `choose` maps (k,) nodes to (k,) actions 0 or 1.

        Returns:
            (R,) leaves, and per step the nodes that were met.
        """
        here, met = start.clone(), []
        while bool((inner := here >= 0).any()):
            nodes = here[inner]
            met.append(nodes)
            here[inner] = self.children[nodes, choose(nodes)]
        return -1 - here, met

    def value(self, probability: Tensor, reward: Tensor) -> tuple[Tensor, Tensor]:
        """Expected reward at every place, exact and differentiable.

        Args:
            probability: (n,) of taking the draft's token at every node.
            reward: (m,) of every leaf.

        Returns:
            (n, 2) after each action at every node, and (N,) from the roots.
        """
        after = torch.zeros(len(self.problem), 2, dtype=reward.dtype)
        value = torch.zeros(len(self.problem), dtype=reward.dtype)
        for level in range(int(self.depth.max()) if len(self.depth) else -1, -1, -1):
            nodes = (self.depth == level).nonzero()[:, 0]
            below = self._at(self.children[nodes], value, reward)
            after = after.index_copy(0, nodes, below)
            chance = probability[nodes]
            now = chance * below[:, 1] + (1 - chance) * below[:, 0]
            value = value.index_copy(0, nodes, now)
        return after, self._at(self.roots, value, reward)

    def _at(self, references: Tensor, value: Tensor, reward: Tensor) -> Tensor:
        if not len(value):
            return reward[-1 - references]
        inner = references >= 0
        return torch.where(
            inner, value[references.clamp(min=0)], reward[(-1 - references).clamp(min=0)]
        )

    def then_target(self, reward: Tensor) -> Tensor:
        """(n, 2) reward after each action at every node, if the target alone finishes."""
        after, _ = self.value(torch.zeros(len(self.problem), dtype=reward.dtype), reward)
        return after

    @property
    def on_target_path(self) -> Tensor:
        """(n,) bool: mismatches that the target meets when it decides everything."""
        return self.visited(torch.zeros(len(self.problem), dtype=torch.bool))

    def best(self) -> Tensor:
        """(N,) bool: problems that some sequence of actions gets right."""
        value = torch.zeros(len(self.problem))
        right = self.right.float()
        for level in range(int(self.depth.max()) if len(self.depth) else -1, -1, -1):
            nodes = (self.depth == level).nonzero()[:, 0]
            value[nodes] = self._at(self.children[nodes], value, right).amax(dim=-1)
        return self._at(self.roots, value, right) > 0

    def tensors(self) -> dict[str, Tensor]:
        """Field -> tensor, for a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def join(parts: list[Branches]) -> Branches:
    """The tries of several lots of problems, in order."""
    roots: list[Tensor] = []
    children: list[Tensor] = []
    problem = []
    nodes = leaves = problems = 0
    for part in parts:
        for references, found in ((part.roots, roots), (part.children, children)):
            found.append(torch.where(references >= 0, references + nodes, references - leaves))
        problem.append(part.problem + problems)
        nodes += len(part.problem)
        leaves += len(part.right)
        problems += len(part)
    others = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in parts[0].tensors()
        if name not in ("roots", "children", "problem")
    }
    return Branches(torch.cat(roots), torch.cat(problem), children=torch.cat(children), **others)
