"""Remove heads, neurons or blocks by a baseline's choice, without repair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from effllm.modules.ranges import Dtype, PositiveInt, Ratio, Seed
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.stage import Metrics, Stage, StageContext
from effllm.pipelines.stages.structural.smaller import write_smaller

if TYPE_CHECKING:
    from effllm.modules.structural.baselines import StructuralBaseline
    from effllm.modules.structural.units import AttentionUnit


@dataclass(frozen=True, kw_only=True)
class PruneUnits(Stage):
    """A compact model with the same budgets as the method it is compared with.

    Args:
        baseline: chooses what stays.
        sparsity: share of heads, and of neurons, that is removed in all.
        attention_unit: head, or kv_group for the heads that share keys and values.
        dtype: of the forward passes and the stored weights.
        micro_batch_size: windows per forward pass.
        seed: of random choices.
    """

    VERSION: ClassVar[int] = 3  # 3: ShortGPT's count of blocks sees biases and norms
    INPUTS: ClassVar = {"model": Checkpoint, "windows": Windows}
    OUTPUT: ClassVar = Checkpoint
    VOLATILE: ClassVar = frozenset({"micro_batch_size"})

    baseline: StructuralBaseline
    sparsity: Ratio
    attention_unit: AttentionUnit
    dtype: Dtype
    micro_batch_size: PositiveInt
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """A checkpoint that loads and runs on its own."""
        from effllm.modules.calibration.stream import BlockStream
        from effllm.modules.structural.compact import compact_family
        from effllm.modules.structural.units import sublayers, uniform_targets

        checkpoint = ctx.input("model", Checkpoint)
        model = checkpoint.load_model(self.dtype, ctx.device)
        layers = sublayers(model, self.attention_unit)
        compact_family(model)  # what cannot be exported is refused before the work
        targets = uniform_targets(layers, self.sparsity)
        windows = ctx.input("windows", Windows).token_ids()
        stream = BlockStream(model, windows, self.micro_batch_size)
        kept = self.baseline.choose(stream, layers, targets, ctx.generator("choice"))
        step: dict[str, object] = {
            "stage": "prune_units",
            "baseline": self.baseline.name,
            "sparsity": self.sparsity,
            "attention_unit": self.attention_unit,
            "removed": {one.name: one.units - len(kept[one.name].units) for one in layers},
        }
        return write_smaller(ctx, checkpoint, model, layers, kept, step)
