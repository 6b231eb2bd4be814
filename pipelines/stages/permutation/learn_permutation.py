"""Learn orders of channels, site by site, on the output error of the layers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from effllm.modules.ranges import PositiveInt
from effllm.modules.trainer import ON_CPU
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.permutation.problems import SiteProblems, described
from effllm.pipelines.stages.training import TrainingStage

if TYPE_CHECKING:
    from effllm.modules.permutation.learning import Matching
    from effllm.modules.sparsity.patterns import Grouped
    from effllm.modules.sparsity.pruners import ScoringPruner


@dataclass(frozen=True, kw_only=True)
class LearnPermutation(TrainingStage):
    """Cost matrices trained on tr(E H E^T), started from a searched order; held-out text chooses.

    Args:
        matching: how costs become an order.
        steps: at each site.
        check_every: steps between looks at the held-out error.
        pruner: whose scores decide the masks; that of the search.
        pattern: N:M; that of the search.
        level: that of the search.
    """

    INPUTS: ClassVar = {
        "model": Checkpoint,
        "gram": Grams,
        "heldout_gram": Grams,
        "start": Permutation,
    }
    OUTPUT: ClassVar = Permutation

    matching: "Matching"
    steps: PositiveInt
    check_every: PositiveInt
    pruner: "ScoringPruner"
    pattern: "Grouped"
    level: Literal["gather", "free"]

    def run(self, ctx: StageContext) -> Metrics:
        """Site by site; goes on at the site that was interrupted."""
        import torch

        from effllm.modules.permutation.learning import LayerLearning, LearnableOrder

        start = ctx.input("start", Permutation)
        problems = SiteProblems(ctx, self.pruner, self.pattern, self.level)
        first, orders = start.orders(), {}
        trained = 0
        for number, site in enumerate(problems.sites, start=1):
            blocks = self.matching.blocks(site.columns, self.pattern, site.name)
            trained += blocks[0] * blocks[1] ** 2
            module = LayerLearning(
                problems.problem(site),
                problems.heldout_grams(site),
                LearnableOrder(
                    first[site.name], blocks, self.matching.noise, ctx.generator(site.name)
                ),
                self.matching,
                self.optimizer,
                self.optimizer_steps(self.steps, batch_size=1, epochs=1),
                self.check_every,
            )
            self.fit(
                ctx,
                module,
                site.name,
                curve=f"curves/{site.name}.csv",
                progress=False,
                own=ON_CPU,
                epochs=1,
                tensors=[torch.arange(self.steps)],
            )
            orders[site.name] = module.best_order
            ctx.progress(number, len(problems.sites), "site")
        about = {
            **start.about,
            "found": [
                *start.about["found"],
                {
                    "kind": "Learning",
                    "matching": described(self.matching),
                    "steps": self.steps,
                    "objective": "layer",
                },
            ],
        }
        return {**problems.publish(ctx, orders, about), "trained_numbers": trained}
