"""One-shot pruning of every linear layer in the decoder blocks, block by block."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.ranges import Dtype, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.statistics import GRAM_FOLDER, Grams
from effllm.pipelines.files import write_json
from effllm.pipelines.stage import Metrics, Stage, StageContext
from effllm.pipelines.stages.blockwise import (
    gram_files,
    gram_name,
    install,
    resume_stream,
    save_block,
    save_stream,
)

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.sparsity.patterns import Pattern
    from effllm.modules.sparsity.pruners import Pruner


@dataclass(frozen=True, kw_only=True)
class Prune(Stage):
    """Prune a model with one of the one-shot methods.

    Args:
        pruner: scores, and possibly repairs, one matrix.
        pattern: the pattern to reach in every layer.
        true_sequential: refresh statistics inside a block after each group of layers.
        keep_gram: also store the Gram matrices of the pruned model, for `take_grams`; that costs
            less than a pass of their own.
        blocks: first so many decoder blocks are pruned; None: all.
        dtype: of the forward passes and of the stored weights; solvers use float32.
        micro_batch_size: windows per forward pass.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "windows": Windows}
    OUTPUT: ClassVar = Checkpoint
    VOLATILE: ClassVar = frozenset({"micro_batch_size"})
    DIGEST_DEFAULTS: ClassVar = {"keep_gram": False, "blocks": None}

    pruner: "Pruner"
    pattern: "Pattern"
    true_sequential: bool
    keep_gram: bool
    blocks: PositiveInt | None
    dtype: Dtype
    micro_batch_size: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """Pruned checkpoint with masks and the layer errors on the inputs it was pruned with."""
        import torch

        from effllm.modules.calibration.stream import BlockStream
        from effllm.modules.modeling.blocks import prunable_layers
        from effllm.modules.sparsity.sequential import check_pattern, prune_block

        checkpoint = ctx.input("model", Checkpoint)
        model = checkpoint.load_model(self.dtype, ctx.device)
        check_pattern(model, self.pattern)
        windows = ctx.input("windows", Windows).model_inputs()
        orders = self._orders(ctx)
        stream = BlockStream(model, windows, self.micro_batch_size)
        count = min(self.blocks or len(stream.blocks), len(stream.blocks))
        for index in range(resume_stream(ctx, stream), count):
            layers = {layer.name: layer for layer in stream.layers()}
            leaders = [group[0] for group in stream.groups()]
            record = prune_block(
                stream,
                self.pruner,
                self.pattern,
                true_sequential=self.true_sequential,
                keep_gram=self.keep_gram,
                orders=orders and {name: orders[f"{index}.{name}"] for name in layers},
            )
            if self.keep_gram:
                grams = {name: record.grams[name].cpu() for name in leaders}
                ctx.save_progress(gram_name(index), grams)
            save_block(
                ctx,
                index,
                weight={name: layer.read() for name, layer in layers.items()},
                mask=record.masks,
                error={name: torch.tensor(error) for name, error in record.errors.items()},
                damping={"highest": torch.tensor(record.damping)},
            )
            save_stream(ctx, stream)

        if self.keep_gram:
            files = gram_files(ctx, count)
            Grams.write(ctx.workdir / GRAM_FOLDER, files, stream.all_groups())
        found = install(ctx, prunable_layers(model), count)
        masks = found["mask"]
        errors = {name: float(error) for name, error in found["error"].items()}
        usual = getattr(self.pruner, "damping", 0.0)
        dampings = [float(damping) for damping in found["damping"].values()]
        raised = [index for index, damping in enumerate(dampings) if damping > 1.5 * usual]
        if raised:
            ctx.warn(f"damping had to be raised in {len(raised)} blocks: {raised}")
        step = {
            "stage": "prune",
            "pruner": self.pruner.name,
            "pattern": self.pattern.name,
            "true_sequential": self.true_sequential,
            **({"blocks": count} if self.blocks else {}),
            **self._more_history(ctx),
        }
        tokenizer = checkpoint.tokenizer_if_any()
        Checkpoint.write(ctx.workdir, model, tokenizer, [*checkpoint.history, step], masks)
        write_json(ctx.workdir / "layer_errors.json", errors)
        kept = sum(int(mask.sum()) for mask in masks.values())
        total = sum(mask.numel() for mask in masks.values())
        return {
            "sparsity": 1 - kept / total,
            "sparsity_of_all_parameters": (total - kept) / model.num_parameters(),
            "layer_error": sum(errors.values()) / len(errors) if errors else None,
            "blocks_with_raised_damping": len(raised),
        }

    def _orders(self, ctx: StageContext) -> "dict[str, Tensor] | None":
        """Order of the channels of each layer; None: as they are."""
        return None

    def _more_history(self, ctx: StageContext) -> dict[str, Any]:
        """What else was done to the model."""
        return {}
