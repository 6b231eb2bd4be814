"""Write what is left of a model, whatever chose it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.stage import Metrics, StageContext

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedModel

    from effllm.modules.structural.units import Kept, SubLayer

Layout = Literal["compact", "stock"]


def write_smaller(
    ctx: StageContext,
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    layers: Sequence[SubLayer],
    kept: Mapping[str, Kept],
    step: dict[str, object],
    *,
    layout: Layout = "compact",
) -> Metrics:
    """Write what is left of a model as a Checkpoint; its sizes and sparsities."""
    from effllm.modules.structural.compact import compact_model, stock_model

    make = compact_model if layout == "compact" else stock_model
    smaller = make(model, layers, kept)
    Checkpoint.write(ctx.workdir, smaller, checkpoint.load_tokenizer(), [*checkpoint.history, step])
    metrics: Metrics = {
        "parameters": sum(one.numel() for one in smaller.parameters()),
        "dense_parameters": sum(one.numel() for one in model.parameters()),
    }
    for kind in ("attention", "ffn"):
        mine = [one for one in layers if one.kind == kind]
        left = sum(len(kept[one.name].units) for one in mine)
        metrics[f"{kind}_removed"] = sum(one.units for one in mine) - left
        metrics[f"{kind}_sparsity"] = 1 - left / sum(one.units for one in mine)
    return metrics
