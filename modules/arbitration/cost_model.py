"""What arbitrated decoding costs, from exact counts, in steps of the target.

    C = (blocks (1 + v K) + c K blocks + e calls) / tokens after the first

Decoding with the target alone costs 1 a token after the first, which comes with the prompt, so
1 / C is the predicted speed-up. It is a prediction: no clock is read, and none enters a reward.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.arbitration.branches import Branches
from effllm.modules.ranges import NonNegativeFloat, NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Constants of a pair, in target steps.

    Args:
        draft: c, a draft step.
        verified: v, one more token in a target pass.
        policy: e, a call of the policy.
        block: K, drafted tokens of a block.
    """

    draft: NonNegativeFloat
    verified: NonNegativeFloat
    policy: NonNegativeFloat
    block: NonNegativeInt

    def per_leaf(self, branches: Branches) -> Tensor:
        """(m,) float64 costs of whole outputs."""
        blocks, calls = branches.count("blocks").double(), branches.count("calls").double()
        passes = 1 + self.verified * self.block + self.draft * self.block
        return blocks * passes + self.policy * calls


def rewards(branches: Branches, costs: CostModel, speed_weight: float) -> Tensor:
    """(m,) y (1 + weight g): speed counts in right answers only.

    Args:
        branches: whose leaves.
        costs: of the pair.
        speed_weight: lambda; 0: the reward is the verdict.

    Returns:
        float32; g = clip(1 - C / C of exact speculation on the same problem, -1, 1), per token.
    """
    right = branches.right.float()
    if speed_weight == 0:
        return right
    per_token = costs.per_leaf(branches) / (branches.count("tokens") - 1).clamp(min=1)
    exact = per_token[branches.walk(torch.zeros(len(branches.problem), dtype=torch.bool))]
    owner = problem_of_leaves(branches)
    saved = (1 - per_token / exact[owner]).clamp(-1, 1).float()
    return right * (1 + speed_weight * saved)


def problem_of_leaves(branches: Branches) -> Tensor:
    """(m,) the problem of every leaf."""
    owner = torch.zeros(len(branches.right), dtype=torch.long)
    for references, problems in (
        (branches.roots, torch.arange(len(branches))),
        (branches.children[:, 0], branches.problem),
        (branches.children[:, 1], branches.problem),
    ):
        leaf = references < 0
        owner[-1 - references[leaf]] = problems[leaf]
    return owner
