"""Prune every key matrix to several sparsities, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import Dtype, NonNegativeInt, PositiveInt, Ratio, Seed, Share
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.structural import Allocation, SupernetFiles
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext
from effllm.pipelines.stages.blockwise import resume_stream, save_stream

if TYPE_CHECKING:
    from effllm.modules.structural.supernet import SupernetBuilder
    from effllm.modules.structural.units import AttentionUnit, SubLayer


@dataclass(frozen=True, kw_only=True)
class BuildSupernet(Stage):
    """Levels around a centre: the uniform sparsity, or the winner of an earlier search.

    Args:
        builder: prunes a block and says what the next one sees.
        sparsity: share of heads, and of neurons, that is removed in all.
        attention_unit: head, or kv_group for the heads that share keys and values.
        reach: levels on each side of the centre; 0 is plain local pruning.
        step: share of a sub-layer's units between two levels.
        attention_floor: smallest step in attention units.
        ffn_floor: smallest step in neurons.
        dtype: of the forward passes and the stored weights.
        micro_batch_size: windows per forward pass.
        seed: of random paths.
    """

    VERSION: ClassVar[int] = 2  # 2: units without weights go first
    INPUTS: ClassVar = {"model": Checkpoint, "windows": Windows, "centre": Many(Allocation)}
    OUTPUT: ClassVar = SupernetFiles
    VOLATILE: ClassVar = frozenset({"micro_batch_size"})

    builder: SupernetBuilder
    sparsity: Ratio
    attention_unit: AttentionUnit
    reach: NonNegativeInt
    step: Share
    attention_floor: PositiveInt
    ffn_floor: PositiveInt
    dtype: Dtype
    micro_batch_size: PositiveInt
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """One file per key matrix, and `supernet.json`."""
        from effllm.modules.calibration.stream import BlockStream
        from effllm.modules.structural.compact import compact_family
        from effllm.modules.structural.supernet import level_tensors, registry_row
        from effllm.modules.structural.units import sublayers

        model = ctx.input("model", Checkpoint).load_model(self.dtype, ctx.device)
        layers = sublayers(model, self.attention_unit)
        compact_family(model)  # what cannot be exported is refused before the work
        centre = self._centre(ctx, layers)
        removals = {one.name: self._removals(one, centre[one.name]) for one in layers}
        windows = ctx.input("windows", Windows).token_ids()
        widest = max(one.units * one.size for one in layers)
        if windows.numel() < 4 * widest:
            ctx.warn(
                f"{windows.numel()} calibration tokens for matrices of {widest} inputs: fewer than "
                "four per input, so the repair leans on the damping"
            )
        stream = BlockStream(model, windows, self.micro_batch_size)
        for index in range(resume_stream(ctx, stream), len(stream.blocks)):
            mine = [one for one in layers if one.block == index]
            found = self.builder.build_block(
                stream, mine, removals, centre, ctx.generator(f"path of block {index}")
            )
            for one in mine:
                ctx.save_progress(one.name, level_tensors(one, found[one.name]))
            save_stream(ctx, stream)

        rows, raised = [], []
        for one in layers:
            stored = ctx.load_progress(one.name)
            assert stored is not None
            ctx.keep_progress(one.name, f"{one.name}.safetensors")
            if float(stored["damping"]) > 1.5 * self.builder.pruner.damping:
                raised.append(one.name)
            errors = stored["errors"].tolist()
            rows.append(registry_row(one, removals[one.name], centre[one.name], errors))
        if raised:
            ctx.warn(f"damping had to be raised in {len(raised)} sub-layers: {', '.join(raised)}")
        iteration = 1 + max(
            (one.iteration for one in ctx.input_list("centre", Allocation)), default=0
        )
        SupernetFiles.write(ctx.workdir, iteration, rows)
        metrics: Metrics = {
            "levels": sum(len(one) for one in removals.values()),
            "sublayers_with_raised_damping": len(raised),
            "tokens": windows.numel(),
        }
        for kind in ("attention", "ffn"):
            mine = [one for one in layers if one.kind == kind]
            removed = sum(centre[one.name] for one in mine)
            metrics[f"{kind}_removed"] = removed
            metrics[f"{kind}_sparsity"] = removed / sum(one.units for one in mine)
        return metrics

    def _centre(self, ctx: StageContext, layers: list[SubLayer]) -> dict[str, int]:
        """The uniform target, or the winner that was linked."""
        from effllm.modules.structural.units import uniform_targets

        targets = uniform_targets(layers, self.sparsity)
        winners = ctx.input_list("centre", Allocation)
        if not winners:
            return targets
        if len(winners) > 1:
            raise ConfigError(f"build_supernet: one centre at most, found {len(winners)}")
        centre = winners[0].removed()
        if set(centre) != set(targets):
            raise ConfigError(
                f"build_supernet: the centre {winners[0].label} has other sub-layers than the model"
            )
        for kind in ("attention", "ffn"):
            names = [one.name for one in layers if one.kind == kind]
            wanted = sum(targets[name] for name in names)
            given = sum(centre[name] for name in names)
            if wanted != given:
                ctx.warn(
                    f"the centre removes {given} {kind} units, sparsity {self.sparsity} means "
                    f"{wanted}: the centre counts"
                )
        return centre

    def _removals(self, sublayer: SubLayer, centre: int) -> list[int]:
        from effllm.modules.structural.supernet import level_removals

        floor = self.attention_floor if sublayer.kind == "attention" else self.ffn_floor
        step = max(floor, round(self.step * sublayer.units))
        return level_removals(sublayer.units, centre, step, self.reach)
