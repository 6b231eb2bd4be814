"""Compare a changed model with the original, layer by layer, on the same held-out inputs."""

from dataclasses import asdict, dataclass
from typing import ClassVar

from effllm.modules.ranges import PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.files import write_json
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class CompareLayers(Stage):
    """Relative output error, sparsity and near-zero mass of every prunable layer.

    Args:
        histogram_layer: `<block>.<name>` of the layer whose weights are drawn; null for the
            largest layer of the middle block.
        histogram_bins: bins of that picture.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "dense": Checkpoint, "gram": Grams}
    OUTPUT: ClassVar = Predictions

    histogram_layer: str | None
    histogram_bins: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """One row per layer, and the histogram of one layer's weights."""
        from effllm.modules.evaluation.layers import compare_layer, weight_histogram
        from effllm.modules.modeling.blocks import prunable_layers

        checkpoint, grams = ctx.input("model", Checkpoint), ctx.input("gram", Grams)
        originals = prunable_layers(ctx.input("dense", Checkpoint).load_model("float32"))
        changed = prunable_layers(checkpoint.load_model("float32"))
        blocks = 1 + max(int(name.partition(".")[0]) for name in originals)
        rows = []
        for index in range(blocks):
            for name, gram in grams.block(index).items():
                key = f"{index}.{name}"
                found = compare_layer(originals[key].read(), changed[key].read(), gram)
                rows.append({"set": "layers", "id": key, "block": index, **asdict(found)})
            ctx.progress(index + 1, blocks, "block")
        drawn = self.histogram_layer or max(
            (key for key in originals if key.startswith(f"{blocks // 2}.")),
            key=lambda key: originals[key].read().numel(),
        )
        limit = 4 * float(originals[drawn].read().std())
        counts = weight_histogram(changed[drawn].read(), limit=limit, bins=self.histogram_bins)
        write_json(
            ctx.workdir / "histogram.json", {"layer": drawn, "limit": limit, "counts": counts}
        )
        Predictions.write(ctx.workdir, rows, checkpoint)
        return {
            f"mean_{name}": sum(row[name] for row in rows) / len(rows)
            for name in ("error", "sparsity", "near_zero")
        }
