"""Keep the better of two checkpoints, judged on held-out text only."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.artifacts.statistics import GRAM_FOLDER
from effllm.pipelines.files import link_or_copy
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class SelectCheckpoint(Stage):
    """SDS's early exit: stop at the second pruning if adjusting did not help.

    Args:
        early_exit: `auto` compares held-out perplexity, `always` and `never` do not look.

    Deviates: the paper exits above about 3B parameters; accounts disagree on the direction.
    """

    INPUTS: ClassVar = {
        "early": Checkpoint,
        "full": Checkpoint,
        "early_perplexity": Predictions,
        "full_perplexity": Predictions,
    }
    OUTPUT: ClassVar = Checkpoint

    early_exit: Literal["auto", "always", "never"]

    def run(self, ctx: StageContext) -> Metrics:
        """The chosen checkpoint, unchanged."""
        means = {}
        for name in ("early", "full"):
            rows = ctx.input(f"{name}_perplexity", Predictions).rows()
            values = [row["nll"] for row in rows if row["set"] == "heldout"]
            means[name] = sum(values) / len(values)
        better = "early" if means["early"] < means["full"] else "full"
        chosen = {"auto": better, "always": "early", "never": "full"}[self.early_exit]
        checkpoint = ctx.input(chosen, Checkpoint)
        for name in checkpoint.manifest["outputs"]:
            if not name.startswith(f"{GRAM_FOLDER}/"):
                link_or_copy(checkpoint.path / name, ctx.workdir / name)
        return {
            "chosen": chosen,
            "heldout_nll_early": means["early"],
            "heldout_nll_full": means["full"],
        }
