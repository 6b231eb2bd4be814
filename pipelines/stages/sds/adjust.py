"""SDS, step 3, and its controls: adjust pruned weights under a soft or a fixed mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from effllm.modules.ranges import Dtype
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.stage import Metrics, Stage, StageContext
from effllm.pipelines.stages.blockwise import blocks_left, install, named_layer, save_block

if TYPE_CHECKING:
    from effllm.modules.sds.adjust import HardThresholding
    from effllm.modules.sparsity.patterns import Pattern
    from effllm.modules.sparsity.pruners import Pruner


@dataclass(frozen=True, kw_only=True)
class Adjust(Stage):
    """Fit pruned weights to the original's outputs, layer by layer, keeping the pattern.

    After the second pruning this is the third step of SDS; right after the first pruning it is
    a control: `refit` with a frozen mask (solver.steps=0), `iht` with a soft one.

    Args:
        solver: adjusts one matrix.
        pattern: pattern to keep.
        pruner: the pruner that made the mask; its comparison set is kept.
        dtype: of the stored weights; the solver uses float32.
    """

    INPUTS: ClassVar = {"dense": Checkpoint, "pruned": Checkpoint, "gram": Grams}
    OUTPUT: ClassVar = Checkpoint

    solver: HardThresholding
    pattern: Pattern
    pruner: Pruner
    dtype: Dtype

    def run(self, ctx: StageContext) -> Metrics:
        """Adjusted checkpoint with masks; resumes at the block that was interrupted."""
        import torch

        from effllm.modules.modeling.blocks import prunable_layers
        from effllm.modules.sds.space import coordinates_by_layer

        dense, pruned = ctx.input("dense", Checkpoint), ctx.input("pruned", Checkpoint)
        # No forward pass: both models stay in main memory, one layer at a time goes to the device.
        originals = prunable_layers(dense.load_model("float32"))
        model = pruned.load_model(self.dtype)
        layers, masks = prunable_layers(model), pruned.masks()
        grams = ctx.input("gram", Grams)
        blocks = 1 + max(int(name.partition(".")[0]) for name in layers)
        for index in blocks_left(ctx, blocks):
            solved = {}
            coordinates = coordinates_by_layer(grams.block(index), self.solver.space, ctx.device)
            for name, at in coordinates.items():
                key = f"{index}.{name}"
                with named_layer(index, name):
                    solved[name] = self.solver.solve(
                        originals[key].read().to(ctx.device),
                        layers[key].read().to(ctx.device),
                        masks[key].to(ctx.device),
                        at,
                        self.pattern,
                        self.pruner.scope,
                    )
            save_block(
                ctx,
                index,
                weight={name: layer.weight for name, layer in solved.items()},
                mask={name: layer.mask for name, layer in solved.items()},
                steps={name: torch.tensor(layer.steps) for name, layer in solved.items()},
            )
        found = install(ctx, layers, blocks)
        adjusted, steps = found["mask"], [int(count) for count in found["steps"].values()]
        step = {
            "stage": "adjust",
            "steps": self.solver.steps,
            "refit_steps": self.solver.refit_steps,
            "space": self.solver.space,
        }
        Checkpoint.write(
            ctx.workdir, model, pruned.load_tokenizer(), [*pruned.history, step], adjusted
        )
        total = sum(mask.numel() for mask in adjusted.values())
        kept = sum(int(mask.sum()) for mask in adjusted.values())
        same = sum(int((mask & masks[name]).sum()) for name, mask in adjusted.items())
        return {
            "sparsity": 1 - kept / total,
            "mask_overlap": same / kept if kept else 1.0,
            "mean_steps": sum(steps) / len(steps),
        }
