"""SDS, step 2: make a pruned model dense again under sparse regularisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.ranges import Dtype, NonNegativeFloat, PositiveInt, Seed
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.stage import Metrics, Stage, StageContext
from effllm.pipelines.stages.blockwise import (
    block_name,
    blocks_left,
    install,
    named_layer,
    resume_stream,
    save_block,
    save_stream,
)
from effllm.pipelines.stages.training import TrainingStage

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from effllm.modules.sds.redense import ProximalGradient


@dataclass(frozen=True, kw_only=True)
class Redense(Stage):
    """Re-dense every layer on its own from a stored Gram matrix.

    Whose activations the Gram matrix holds is a matter of the pipeline's links: those of the
    pruned model are the paper's SD data, those of the dense model its DD data. Linking `start` to
    the dense model skips the first pruning (the paper's S-DS row).

    Args:
        solver: solves one matrix.
        dtype: of the stored weights.
    """

    INPUTS: ClassVar = {"dense": Checkpoint, "start": Checkpoint, "gram": Grams}
    OUTPUT: ClassVar = Checkpoint

    solver: ProximalGradient
    dtype: Dtype

    def run(self, ctx: StageContext) -> Metrics:
        """Dense checkpoint; resumes at the block that was interrupted."""
        from effllm.modules.sds.space import coordinates_by_layer

        model = ctx.input("start", Checkpoint).load_model(self.dtype)  # no forward pass
        grams = ctx.input("gram", Grams)
        originals, starts = _layers_by_block(_load_original(ctx)), _layers_by_block(model)
        for index in blocks_left(ctx, len(originals)):
            layers = coordinates_by_layer(grams.block(index), self.solver.space, ctx.device)
            solved = {}
            for name, at in layers.items():
                original = originals[index][name].to(ctx.device)
                start = starts[index][name].to(ctx.device)
                with named_layer(index, name):
                    solved[name] = self.solver.solve(original, start, at)
            save_block(ctx, index, weight=solved)
        return _finish(ctx, model, self.solver, _input_kind(ctx, grams.subject))


@dataclass(frozen=True, kw_only=True)
class RedenseSequential(Stage):
    """Re-dense block by block on inputs refreshed by the blocks already done (KD data).

    Args:
        solver: solves one matrix.
        dtype: of the forward passes and of the stored weights.
        micro_batch_size: windows per forward pass.
    """

    INPUTS: ClassVar = {"dense": Checkpoint, "start": Checkpoint, "windows": Windows}
    OUTPUT: ClassVar = Checkpoint
    VOLATILE: ClassVar = frozenset({"micro_batch_size"})

    solver: ProximalGradient
    dtype: Dtype
    micro_batch_size: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """Dense checkpoint; resumes at the block that was interrupted."""
        from effllm.modules.calibration.statistics import Gram
        from effllm.modules.calibration.stream import BlockStream

        originals = _layers_by_block(_load_original(ctx))
        model = ctx.input("start", Checkpoint).load_model(self.dtype, ctx.device)
        stream = BlockStream(
            model, ctx.input("windows", Windows).token_ids(), self.micro_batch_size
        )
        for index in range(resume_stream(ctx, stream), len(originals)):
            grams = stream.collect(Gram)
            solved = {}
            for layer in stream.layers():
                start = layer.read().clone()
                original = originals[index][layer.name].to(ctx.device)
                with named_layer(index, layer.name):
                    solved[layer.name] = self.solver.solve(original, start, grams[layer.name]).cpu()
                layer.write(solved[layer.name])
            stream.advance()
            save_block(ctx, index, weight=solved)
            save_stream(ctx, stream)
        return _finish(ctx, model, self.solver, "distilled")


@dataclass(frozen=True, kw_only=True)
class RedenseFromActivations(TrainingStage):
    """The paper's literal form: mini-batches of the pruned model's activations and autograd.

    Some forty times the work of the Gram solver on a CPU; meant for GPUs and for checks.

    Args:
        epochs: passes over the activations.
        batch_tokens: tokens per mini-batch.
        l1_weight: scale-free L1 penalty.
        l2_weight: scale-free squared L2 penalty.
        dtype: of the forward passes and of the stored weights; training is float32.
        micro_batch_size: windows per forward pass.
        seed: of the shuffling.
    """

    INPUTS: ClassVar = {"dense": Checkpoint, "start": Checkpoint, "windows": Windows}
    OUTPUT: ClassVar = Checkpoint
    VOLATILE: ClassVar = TrainingStage.VOLATILE | {"micro_batch_size"}

    epochs: PositiveInt
    batch_tokens: PositiveInt
    l1_weight: NonNegativeFloat
    l2_weight: NonNegativeFloat
    dtype: Dtype
    micro_batch_size: PositiveInt
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """Dense checkpoint; resumes inside the block that was interrupted."""
        from effllm.modules.calibration.statistics import Tokens
        from effllm.modules.calibration.stream import BlockStream
        from effllm.modules.sds.regrowth import ActivationRegrowth

        originals = _layers_by_block(_load_original(ctx))
        model = ctx.input("start", Checkpoint).load_model(self.dtype, ctx.device)
        stream = BlockStream(
            model, ctx.input("windows", Windows).token_ids(), self.micro_batch_size
        )
        for index in range(resume_stream(ctx, stream), len(originals)):
            groups = stream.groups()
            starts = {layer.name: layer.read().clone() for layer in stream.layers()}
            tokens = stream.collect(Tokens, advance=True)
            module = ActivationRegrowth(
                originals={k: v.to(ctx.device) for k, v in originals[index].items()},
                starts=starts,
                groups=groups,
                energies={g[0]: float(tokens[g[0]].square().mean()) for g in groups},
                l1_weight=self.l1_weight,
                l2_weight=self.l2_weight,
                optimizer=self.optimizer,
            )
            self.fit(
                ctx,
                module,
                block_name(index),
                progress=False,
                epochs=self.epochs,
                tensors=[tokens[group[0]] for group in groups],
                batch_size=self.batch_tokens,
                seed=int(ctx.generator(f"block {index}").initial_seed() % 2**31),
            )
            save_block(ctx, index, weight=module.result())
            save_stream(ctx, stream)
        return _finish(ctx, model, self, "sparse")


def _load_original(ctx: StageContext) -> PreTrainedModel:
    """The original in float32, in main memory: its layers go to the device one by one."""
    return ctx.input("dense", Checkpoint).load_model("float32")


def _layers_by_block(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Views of the prunable weights, per block and layer name."""
    from effllm.modules.modeling.blocks import decoder_blocks, linear_layers

    return [
        {layer.name: layer.read() for layer in linear_layers(model, block)}
        for block in decoder_blocks(model)
    ]


def _input_kind(ctx: StageContext, subject: str) -> str:
    """Whose activations were used, in the paper's words: sparse (SD) or dense (DD)."""
    for slot, kind in (("dense", "dense"), ("start", "sparse")):  # they may be the same
        if subject == ctx.input(slot, Checkpoint).label:
            return kind
    return "other"


def _finish(ctx: StageContext, model: PreTrainedModel, solver: Any, inputs: str) -> Metrics:
    """Install the solved weights and write the checkpoint."""
    from effllm.modules.modeling.blocks import decoder_blocks, prunable_layers

    dense, start = ctx.input("dense", Checkpoint), ctx.input("start", Checkpoint)
    blocks = len(decoder_blocks(model))
    install(ctx, prunable_layers(model), blocks)
    step = {
        "stage": "redense",
        "inputs": inputs,
        "start": "dense" if start.label == dense.label else "sparse",
        "l1_weight": solver.l1_weight,
        "l2_weight": solver.l2_weight,
        "steps": getattr(solver, "steps", None) or getattr(solver, "epochs", None),
        "accelerated": getattr(solver, "accelerated", False),
    }
    Checkpoint.write(ctx.workdir, model, start.load_tokenizer(), [*start.history, step])
    return {"blocks": blocks, "inputs": inputs}
