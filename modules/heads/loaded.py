"""Trained heads, ready to draft."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from effllm.modules.heads.drafter import HeadDrafter
from effllm.modules.inference.runner import ModelRunner


@dataclass(frozen=True)
class LoadedHeads:
    """What a proposer needs of trained heads: a draft of a decoder.

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

    def parts(self, target: ModelRunner) -> dict[str, Any]:
        """`heads`, and the target as `model`."""
        return {"heads": self, "model": target.model}

    def about(self, target: PreTrainedModel) -> dict[str, Any]:
        """`{parameters, heads, settings}`, as plain data for reports."""
        return {
            "parameters": sum(one.numel() for one in self.drafter.parameters()),
            "heads": type(self.drafter).__name__,
            "settings": self.settings,
        }
