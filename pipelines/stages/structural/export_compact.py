"""Make a smaller model out of a supernet and a choice of levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.errors import ArtifactError, ConfigError
from effllm.modules.ranges import Dtype
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.structural import Allocation, SupernetFiles
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext
from effllm.pipelines.stages.structural.smaller import Layout, write_smaller


@dataclass(frozen=True, kw_only=True)
class ExportCompact(Stage):
    """The searched model, or the uniform one if no search is linked.

    Args:
        layout: `compact` brings its modelling file and may be uneven; `stock` is of the dense
            model's own class, for equal blocks.
        dtype: of the stored weights.
    """

    VERSION: ClassVar[int] = 3  # 3: history names guided generations and the budget
    INPUTS: ClassVar = {
        "model": Checkpoint,
        "supernet": SupernetFiles,
        "allocation": Many(Allocation),
    }
    OUTPUT: ClassVar = Checkpoint

    layout: Layout
    dtype: Dtype

    def run(self, ctx: StageContext) -> Metrics:
        """A checkpoint that loads and runs on its own."""
        artifact = ctx.input("supernet", SupernetFiles)
        supernet = artifact.open()
        checkpoint = ctx.input("model", Checkpoint)
        model = checkpoint.load_model(self.dtype, ctx.device)
        winners = ctx.input_list("allocation", Allocation)
        if len(winners) > 1:
            raise ConfigError(f"export_compact: one allocation at most, found {len(winners)}")
        for one in winners:
            if one.supernet != supernet.label:
                raise ArtifactError(
                    f"export_compact: {one.label} was searched in {one.supernet}, not in "
                    f"{supernet.label}; link the supernet that it belongs to"
                )
        removed = winners[0].removed() if winners else supernet.centre
        kept = {one.name: supernet.kept(model, one, removed[one.name]) for one in supernet.layers}
        search = winners[0].manifest["config"] if winners else None
        config = artifact.manifest["config"]
        pruner = config["builder"]["pruner"]
        step = {
            "stage": "export_compact",
            "searched": len(winners),
            "guided": search["evolution"]["guided"] if search else 0,
            "budget": search["budget"].get("cost", "units") if search else "units",
            "iteration": supernet.iteration,
            "sparsity": config["sparsity"],
            "levels": 2 * config["reach"] + 1,
            "accumulation": config["builder"]["accumulation"],
            "accumulate_at": config["builder"]["accumulate_at"],
            "attention_unit": config["attention_unit"],
            "score": pruner["score"],
            "refit": pruner["refit"],
            "layout": self.layout,
            "removed": removed,
        }
        return write_smaller(
            ctx, checkpoint, model, supernet.layers, kept, step, layout=self.layout
        )
