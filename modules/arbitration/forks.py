"""What taking one draft token changes, when the target alone finishes: labels, and headroom.

A fork is a mismatch on the target's own path. Both ways are in the tries already, so the four cells
(both right, the target's only, the draft's only, none) are read off.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.arbitration.branches import Branches
from effllm.modules.arbitration.names import Labels

CELLS = ("11", "10", "01", "00")
"""Right with the target's token, right with the draft's."""


@dataclass(frozen=True)
class Forks:
    """Every mismatch on the target's path.

    Attributes:
        nodes: (f,) their numbers.
        problem: (f,) whose they are.
        target_right: (f,) bool, with the target's token.
        draft_right: (f,) bool, with the draft's, the target going on.
        same_answer: (f,) bool, whether the answer stays the target's, right or wrong.
    """

    nodes: Tensor
    problem: Tensor
    target_right: Tensor
    draft_right: Tensor
    same_answer: Tensor

    @staticmethod
    def of(branches: Branches) -> "Forks":
        """All forks of some problems."""
        nodes = branches.on_target_path.nonzero()[:, 0]
        numbers = torch.arange(len(branches.right), dtype=torch.float64)
        leaves = branches.then_target(numbers)[nodes].long()
        right, answer = branches.right[leaves], branches.answer[leaves]  # (f, 2)
        same = answer[:, 0] == answer[:, 1]
        return Forks(nodes, branches.problem[nodes], right[:, 0], right[:, 1], same)

    @property
    def difference(self) -> Tensor:
        """(f,) +1 where only the draft's token is right, -1 where only the target's is, else 0."""
        return self.draft_right.long() - self.target_right.long()

    def cells(self) -> dict[str, int]:
        """Cell -> forks in it."""
        code = 2 * (~self.target_right).long() + (~self.draft_right).long()
        counts = torch.bincount(code, minlength=4).tolist()
        return dict(zip(CELLS, counts, strict=True))


def labelled(forks: Forks, labels: Labels, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Nodes to learn from and whether the draft's token should be taken there.

    Args:
        forks: of the training problems.
        labels: `verdict`: decisive forks, by the right answer. `same_answer`: all forks, by
            whether the target's answer stays (AutoJudge's question). `shuffled`: as
            `verdict`, but dealt anew among all decisive forks: a control. (Dealt anew within each
            problem they would still tell: where the target is wrong, no label is 0.)
        generator: of the shuffling.

    Returns:
        (k,) numbers of nodes and (k,) float labels.
    """
    if labels == "same_answer":
        return forks.nodes, forks.same_answer.float()
    decisive = forks.difference != 0
    won = (forks.difference[decisive] > 0).float()
    if labels == "shuffled":
        won = won[torch.randperm(len(won), generator=generator)]
    return forks.nodes[decisive], won


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Chance that a positive example scores higher than a negative one; NaN without both.

    Args:
        scores: (n,) of the examples; ties count half.
        positive: (n,) bool.
    """
    from scipy.stats import rankdata

    ours, theirs = int(positive.sum()), int((~positive).sum())
    if not ours or not theirs:
        return float("nan")
    ranks = rankdata(scores.double().numpy())
    above = float(ranks[positive.numpy()].sum()) - ours * (ours + 1) / 2
    return above / (ours * theirs)
