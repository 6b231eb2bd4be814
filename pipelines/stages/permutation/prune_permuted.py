"""One-shot pruning along given orders of channels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.stage import StageContext
from effllm.pipelines.stages.sparsity.prune import Prune

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PrunePermuted(Prune):
    """As `prune`, with each N:M group made of neighbours under the orders of a permutation.

    The checkpoint keeps the original order of channels: deployed, its inputs are gathered, or the
    orders are folded first (`fold_permutation`, then `prune`).
    """

    INPUTS: ClassVar = {"model": Checkpoint, "windows": Windows, "permutation": Permutation}

    def _orders(self, ctx: StageContext) -> "dict[str, Tensor]":
        return ctx.input("permutation", Permutation).layer_orders()

    def _more_history(self, ctx: StageContext) -> dict[str, Any]:
        return {"permutation": ctx.input("permutation", Permutation).about}
