"""Accuracy of a decoder on lm-evaluation-harness tasks that write their answers."""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import ClassVar

from effllm.modules.ranges import Dtype, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Tasks
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.files import write_json, write_rows
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext
from effllm.pipelines.stages.decoding.loading import DecodingArm, DecodingModels


@dataclass(frozen=True, kw_only=True)
class EvaluateGeneration(Stage):
    """Our local tasks, and any of the harness's own by name, decoded by our own loop.

    Args:
        decoder: `{proposer, verifier}`; one with a draft model names it as an arm of the
            benchmark does: `draft: {kind: first_layers, layers}` or `{kind: input, index}`.
        harness_tasks: names of the harness's tasks (fetched from the hub), besides ours.
        limit: first so many items of each task; null takes all.
        dtype: of all models.
        fast: take the fastest path of this machine.
        max_length: longest prompt plus continuation, in tokens.
    """

    VERSION: ClassVar[int] = 2  # 2: says what the decoder is
    INPUTS: ClassVar = {
        "model": Checkpoint,
        "tasks": Tasks,
        "drafts": Many(Checkpoint, ordered=True),
    }
    OUTPUT: ClassVar = Predictions

    decoder: DecodingArm
    harness_tasks: list[str]
    limit: PositiveInt | None
    dtype: Dtype
    fast: bool
    max_length: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """One row per item and way of reading it; `answers.jsonl`: what was decoded."""
        from effllm.modules.decoding.answering import DecodingLM
        from effllm.modules.evaluation.harness import quieten_harness, run_tasks

        tasks = ctx.input("tasks", Tasks)
        models = DecodingModels.load(ctx, self.dtype, fast=self.fast)
        decoder = models.decoder(self.decoder)
        session = decoder.join(models.target, models.tokenizer)
        quieten_harness()
        adapter = DecodingLM(
            pretrained=models.target,
            tokenizer=models.tokenizer,
            session=session,
            max_length=self.max_length,
            stored=ctx.progress_dir / "answers.jsonl",
            progress=lambda done, total: ctx.progress(done, total, "request"),
        )
        results = run_tasks(
            adapter,
            [*tasks.names, *self.harness_tasks],
            include_path=tasks.place(ctx.progress_dir),
            include_defaults=bool(self.harness_tasks),
            limit=self.limit,
        )
        answers = adapter.answers
        arm = decoder.about(models.target)
        Predictions.write(ctx.workdir, results.rows, models.checkpoint, arm=arm)
        write_rows(ctx.workdir / "answers.jsonl", (asdict(one) for one in answers))
        write_json(
            ctx.workdir / "versions.json",
            {"lm-eval": version("lm-eval"), "tasks": results.versions},
        )
        rounds = sum(one.rounds for one in answers)
        # The prompt's own pass gives the first token of each answer.
        emitted = sum(max(one.tokens - 1, 0) for one in answers)
        return {
            **results.metrics,
            "tokens": sum(one.tokens for one in answers),
            "tokens_per_pass": emitted / rounds if rounds else None,
            "loosened_tokens": sum(one.loosened for one in answers),
            "lossless": session.verifier.lossless,
        }
