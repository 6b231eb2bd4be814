"""Accuracy of a model on lm-evaluation-harness tasks."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar

from effllm.modules.ranges import Dtype, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Tasks
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.files import write_json
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class EvaluateTasks(Stage):
    """Our local tasks, and any of the harness's own by name.

    Args:
        harness_tasks: names of the harness's tasks (fetched from the hub), besides ours.
        limit: first so many items of each task; null takes all.
        dtype: of the forward passes.
        max_length: longest context plus continuation, in tokens.
        micro_batch_size: contexts per forward pass.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "tasks": Tasks}
    OUTPUT: ClassVar = Predictions
    VOLATILE: ClassVar = frozenset({"micro_batch_size"})

    harness_tasks: list[str]
    limit: PositiveInt | None
    dtype: Dtype
    max_length: PositiveInt
    micro_batch_size: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """One row per item: task, id, correct."""
        from effllm.modules.evaluation.harness import evaluate_tasks

        checkpoint, tasks = ctx.input("model", Checkpoint), ctx.input("tasks", Tasks)
        results = evaluate_tasks(
            checkpoint.load_model(self.dtype, ctx.device),
            checkpoint.load_tokenizer(),
            [*tasks.names, *self.harness_tasks],
            include_path=tasks.place(ctx.progress_dir),
            include_defaults=bool(self.harness_tasks),
            batch_size=self.micro_batch_size,
            max_length=self.max_length,
            limit=self.limit,
            progress=lambda done, total: ctx.progress(done, total, "context"),
        )
        Predictions.write(ctx.workdir, results.rows, checkpoint)
        write_json(
            ctx.workdir / "versions.json",
            {"lm-eval": version("lm-eval"), "tasks": results.versions},
        )
        return dict(results.metrics)
