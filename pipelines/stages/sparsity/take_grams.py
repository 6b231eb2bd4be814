"""Gram matrices that a pruning stage gathered on its way, as a result of their own."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.errors import ArtifactError
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.statistics import GRAM_FOLDER, Grams
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class TakeGrams(Stage):
    """The same matrices that `collect_gram` would measure on the pruned model, without a pass."""

    INPUTS: ClassVar = {"model": Checkpoint}
    OUTPUT: ClassVar = Grams

    def run(self, ctx: StageContext) -> Metrics:
        """Link the files; nothing is computed."""
        checkpoint = ctx.input("model", Checkpoint)
        files = sorted((checkpoint.path / GRAM_FOLDER).glob("block-*"))
        if not files:
            raise ArtifactError(
                f"{checkpoint.label} holds no Gram matrices; prune with keep_gram=true, or use the "
                "stage collect_gram"
            )
        groups = checkpoint.read_json(f"{GRAM_FOLDER}/groups.json")
        Grams.write(ctx.workdir, files, groups, checkpoint)
        return {"blocks": len(files)}
