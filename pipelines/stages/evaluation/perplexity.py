"""Perplexity of a model on held-out and on test windows."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from effllm.modules.errors import NumericalError
from effllm.modules.ranges import Dtype, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class Perplexity(Stage):
    """Mean negative log-likelihood per window; held-out serves choices, test serves reports.

    Args:
        dtype: of the forward passes; the loss is float32.
        micro_batch_size: windows per forward pass.
    """

    VERSION: ClassVar[int] = 2  # 2: rows name their documents
    INPUTS: ClassVar = {"model": Checkpoint, "heldout": Windows, "test": Windows}
    OUTPUT: ClassVar = Predictions
    VOLATILE: ClassVar = frozenset({"micro_batch_size"})

    dtype: Dtype
    micro_batch_size: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """One row per window: set, protocol, document, nats per token."""
        from effllm.modules.evaluation.perplexity import perplexity, window_nll

        checkpoint = ctx.input("model", Checkpoint)
        model = checkpoint.load_model(self.dtype, ctx.device)
        rows: list[dict[str, object]] = []
        metrics: Metrics = {}
        for role in ("heldout", "test"):
            windows = ctx.input(role, Windows)
            token_ids = windows.token_ids()
            nll = window_nll(
                model,
                token_ids,
                batch_size=self.micro_batch_size,
                progress=partial(_report, ctx, len(token_ids)),
            )
            if not bool(nll.isfinite().all()):
                raise NumericalError(
                    f"the loss is not finite on {windows.protocol}; try budget.dtype=float32"
                )
            metrics[f"{role}/{windows.protocol}/ppl"] = perplexity(nll)
            rows += windows.rows(role, "nll", nll)
        Predictions.write(ctx.workdir, rows, checkpoint)
        return metrics


def _report(ctx: StageContext, total: int, done: int) -> None:
    ctx.progress(done, total, "window")
