"""Prune with the dense model's scores, along given orders of channels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import Dtype
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.sparsity.patterns import Grouped
    from effllm.modules.sparsity.pruners import ScoringPruner


@dataclass(frozen=True, kw_only=True)
class PruneByScore(Stage):
    """The masks that orders were searched or learned for: scores are not measured again.

    Weights keep their values and their original places.

    Args:
        pruner: whose scores decide, on the dense model's calibration inputs.
        pattern: N:M.
        dtype: of the stored weights.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "gram": Grams, "permutation": Permutation}
    OUTPUT: ClassVar = Checkpoint

    pruner: "ScoringPruner"
    pattern: "Grouped"
    dtype: Dtype

    def run(self, ctx: StageContext) -> Metrics:
        """A checkpoint with masks in the original order of channels."""
        import torch

        from effllm.modules.modeling.blocks import prunable_layers
        from effllm.modules.permutation.orders import ordered_mask

        checkpoint, grams = ctx.input("model", Checkpoint), ctx.input("gram", Grams)
        permutation = ctx.input("permutation", Permutation)
        for name, mine in (("pattern", self.pattern.name), ("pruner", self.pruner.name)):
            if permutation.about[name] != mine:
                raise ConfigError(
                    f"{name} is {mine}, but its permutation was found for "
                    f"{permutation.about[name]}; give both the same"
                )
        model = checkpoint.load_model("float32")
        orders, masks = permutation.layer_orders(), {}
        blocks: dict[str, dict[str, torch.Tensor]] = {}
        for name, layer in prunable_layers(model).items():
            index, _, inner = name.partition(".")
            if index not in blocks:
                blocks = {index: grams.block(int(index))}
            score = self.pruner.score(layer.read(), blocks[index][inner].diagonal())
            masks[name] = ordered_mask(score, orders[name], self.pattern)
            layer.write(layer.read() * masks[name])
        step = {
            "stage": "prune",
            "pruner": self.pruner.name,
            "pattern": self.pattern.name,
            "scores": "dense",
            "permutation": permutation.about,
        }
        Checkpoint.write(
            ctx.workdir,
            model.to(getattr(torch, self.dtype)),
            checkpoint.tokenizer_if_any(),
            [*checkpoint.history, step],
            masks,
        )
        kept = sum(int(mask.sum()) for mask in masks.values())
        return {"sparsity": 1 - kept / sum(mask.numel() for mask in masks.values())}
