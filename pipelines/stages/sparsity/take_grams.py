"""Gram matrices that a pruning stage gathered on its way, as a result of their own."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.errors import ArtifactError
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.files import link_or_copy, write_json
from effllm.pipelines.stage import Metrics, Stage, StageContext
from effllm.pipelines.stages.sparsity.prune import GRAM_FOLDER


@dataclass(frozen=True, kw_only=True)
class TakeGrams(Stage):
    """The same matrices that `collect_gram` would measure on the pruned model, without a pass."""

    INPUTS: ClassVar = {"model": Checkpoint}
    OUTPUT: ClassVar = Grams

    def run(self, ctx: StageContext) -> Metrics:
        """Link the files; nothing is computed."""
        checkpoint = ctx.input("model", Checkpoint)
        folder = checkpoint.path / GRAM_FOLDER
        if not folder.is_dir():
            raise ArtifactError(
                f"{checkpoint.label} holds no Gram matrices; prune with keep_gram=true, or use the "
                "stage collect_gram"
            )
        files = sorted(folder.iterdir())
        for file in files:
            link_or_copy(file, ctx.workdir / file.name)
        write_json(ctx.workdir / "subject.json", {"checkpoint": checkpoint.label})
        return {"blocks": len(files) - 1}
