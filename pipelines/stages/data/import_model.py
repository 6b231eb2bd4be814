"""Bring a model into the store: a plain safetensors folder with its tokenizer."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.modeling.sources import GgufWheel, PretrainedFolder, TinyRandom


@dataclass(frozen=True, kw_only=True)
class ImportModel(Stage):
    """Load a model from its source and store it unchanged.

    Args:
        source: where the model comes from.
    """

    OUTPUT: ClassVar = Checkpoint
    VOLATILE: ClassVar = frozenset({"source.path"})
    SOURCES: ClassVar = ("source",)

    source: "GgufWheel | PretrainedFolder | TinyRandom"

    def run(self, ctx: StageContext) -> Metrics:
        """Convert once; everything else loads the artifact."""
        from effllm.modules.errors import UnsupportedModelError
        from effllm.modules.modeling.blocks import decoder_blocks, prunable_layers

        model, tokenizer = self.source.load()
        history = [{"stage": "import_model", **asdict(self.source)}]
        history[0].pop("path", None)
        Checkpoint.write(ctx.workdir, model, tokenizer, history)
        prunable: int | None = None
        blocks: int | None = None
        try:  # a model that cannot be pruned can still be decoded and measured
            blocks = len(decoder_blocks(model))
            prunable = sum(layer.read().numel() for layer in prunable_layers(model).values())
        except UnsupportedModelError:
            pass  # the stages that prune say why they cannot
        return {
            "parameters": sum(value.numel() for value in model.parameters()),
            "prunable_parameters": prunable,
            "blocks": blocks,
        }
