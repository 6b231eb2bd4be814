"""Search the orders of channels under which a pruner's N:M mask loses least."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.stage import Metrics, Stage, StageContext
from effllm.pipelines.stages.permutation.problems import SiteProblems, described

if TYPE_CHECKING:
    from effllm.modules.permutation.search import Search
    from effllm.modules.sparsity.patterns import Grouped
    from effllm.modules.sparsity.pruners import ScoringPruner


@dataclass(frozen=True, kw_only=True)
class SearchPermutation(Stage):
    """One order per site, each found by itself.

    Args:
        search: how an order is found.
        pruner: whose scores decide the masks, on the dense model's calibration inputs.
        pattern: N:M.
        level: `gather`, an order for each set of layers with equal inputs; `free`, orders that
            fold into the weights.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "gram": Grams, "heldout_gram": Grams}
    OUTPUT: ClassVar = Permutation

    search: "Search"
    pruner: "ScoringPruner"
    pattern: "Grouped"
    level: Literal["gather", "free"]

    def run(self, ctx: StageContext) -> Metrics:
        """Site by site; goes on at the site that was interrupted."""
        problems = SiteProblems(ctx, self.pruner, self.pattern, self.level)
        orders = problems.each(
            ctx, lambda site, problem: self.search.find(problem, ctx.generator(site))
        )
        about = {
            "level": self.level,
            "pattern": self.pattern.name,
            "pruner": self.pruner.name,
            "found": [described(self.search)],
        }
        return dict(problems.publish(ctx, orders, about))
