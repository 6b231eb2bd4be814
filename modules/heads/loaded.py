"""Trained heads, ready to draft."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from effllm.modules.heads.drafter import HeadDrafter


@dataclass(frozen=True)
class LoadedHeads:
    """What a proposer needs of trained heads.

    Attributes:
        drafter: in eval mode.
        token_ids: (n,) rising, the tokens that it can guess.
        ranks: (P, K) ranks of the true tokens on held-out texts; trees are chosen by them.
        settings: what the drafter was made with, for reports.
    """

    drafter: HeadDrafter
    token_ids: Tensor
    ranks: Tensor
    settings: dict[str, Any] = field(default_factory=dict)
