"""Improve orders of channels by local search."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.stage import Metrics, Stage, StageContext
from effllm.pipelines.stages.permutation.problems import SiteProblems, described

if TYPE_CHECKING:
    from effllm.modules.permutation.search import Improvement
    from effllm.modules.sparsity.patterns import Grouped
    from effllm.modules.sparsity.pruners import ScoringPruner


@dataclass(frozen=True, kw_only=True)
class ImprovePermutation(Stage):
    """Each site's order, improved from where a search or an improvement left it.

    Args:
        improvement: how.
        pruner: whose scores decide the masks; that of the start.
        pattern: N:M; that of the start.
        level: that of the start.
    """

    INPUTS: ClassVar = {
        "model": Checkpoint,
        "gram": Grams,
        "heldout_gram": Grams,
        "start": Permutation,
    }
    OUTPUT: ClassVar = Permutation

    improvement: "Improvement"
    pruner: "ScoringPruner"
    pattern: "Grouped"
    level: Literal["gather", "free"]

    def run(self, ctx: StageContext) -> Metrics:
        """Site by site; goes on at the site that was interrupted."""
        start = ctx.input("start", Permutation)
        problems = SiteProblems(ctx, self.pruner, self.pattern, self.level)
        first = start.orders()
        orders = problems.each(
            ctx,
            lambda site, problem: self.improvement.improve(
                problem, first[site], ctx.generator(site)
            ),
        )
        about = {**start.about, "found": [*start.about["found"], described(self.improvement)]}
        return dict(problems.publish(ctx, orders, about))
