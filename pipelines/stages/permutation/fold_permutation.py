"""Write orders of channels into a model's weights."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.errors import ConfigError, NumericalError
from effllm.modules.ranges import Dtype, PositiveFloat, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class FoldPermutation(Stage):
    """A plain model that computes the same as before, with its channels in new orders.

    A model that was pruned along these orders becomes N:M along neighbouring channels, as sparse
    kernels need it; a dense one becomes so when `prune` follows.

    Args:
        tolerance: largest difference of a logit on one window, in float32, relative to the
            largest logit.
        check_tokens: tokens of that window.
        dtype: of the stored weights.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "permutation": Permutation, "windows": Windows}
    OUTPUT: ClassVar = Checkpoint

    tolerance: PositiveFloat
    check_tokens: PositiveInt
    dtype: Dtype

    def run(self, ctx: StageContext) -> Metrics:
        """Refuses to publish a model that computes something else."""
        import torch

        from effllm.modules.permutation.sites import fold

        checkpoint = ctx.input("model", Checkpoint)
        permutation = ctx.input("permutation", Permutation)
        if permutation.about["level"] != "free":
            raise ConfigError(
                f"orders of level {permutation.about['level']} do not fold; "
                "search or learn with level=free"
            )
        model = checkpoint.load_model("float32", ctx.device)
        tokens = ctx.input("windows", Windows).model_inputs()[:1, : self.check_tokens]
        with torch.no_grad():
            before = model(tokens.to(ctx.device)).logits
            moved = fold(model, {k: v.to(ctx.device) for k, v in permutation.orders().items()})
            difference = (model(tokens.to(ctx.device)).logits - before).abs().max()
        off = float(difference / before.abs().max())
        if not off <= self.tolerance:
            raise NumericalError(
                f"the folded model's logits differ by {off:.1e} of the largest, "
                f"expected {self.tolerance:.0e}; this family does not fold, use level=gather"
            )
        pruned = any(step["stage"] == "prune" for step in checkpoint.history)
        masks = {
            name: mask[moved[name][0]][:, moved[name][1]].contiguous()
            for name, mask in (checkpoint.masks() if pruned else {}).items()
        }
        step = {"stage": "fold_permutation", "permutation": permutation.about}
        Checkpoint.write(
            ctx.workdir,
            model.to(getattr(torch, self.dtype)),
            checkpoint.tokenizer_if_any(),
            [*checkpoint.history, step],
            masks or None,
        )
        return {"largest_difference": off}
