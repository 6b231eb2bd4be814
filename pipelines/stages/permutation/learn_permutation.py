"""Learn orders of channels, site by site, on the output error of the layers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from effllm.modules.ranges import PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.stage import Metrics, Stage, StageContext
from effllm.pipelines.stages.permutation.problems import SiteProblems, described

if TYPE_CHECKING:
    from effllm.modules.permutation.learning import Matching, OptimizerFactory
    from effllm.modules.sparsity.patterns import Grouped
    from effllm.modules.sparsity.pruners import ScoringPruner


@dataclass(frozen=True, kw_only=True)
class LearnPermutation(Stage):
    """Cost matrices trained on tr(E H E^T), started from a searched order; held-out text chooses.

    Args:
        matching: how costs become an order.
        optimizer: factory of the optimiser.
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
    optimizer: "OptimizerFactory"
    steps: PositiveInt
    check_every: PositiveInt
    pruner: "ScoringPruner"
    pattern: "Grouped"
    level: Literal["gather", "free"]

    def __post_init__(self) -> None:
        from effllm.modules.training import require_optimizer

        require_optimizer(self.optimizer)

    def run(self, ctx: StageContext) -> Metrics:
        """Site by site; goes on at the site that was interrupted."""
        import torch

        from effllm.modules.permutation.learning import LayerLearning, LearnableOrder
        from effllm.modules.training import fit

        start = ctx.input("start", Permutation)
        problems = SiteProblems(ctx, self.pruner, self.pattern, self.level)
        first, orders = start.orders(), {}
        trained = 0
        for number, site in enumerate(problems.sites, start=1):
            blocks = self.matching.blocks(site.columns, self.pattern, site.name)
            trained += blocks[0] * blocks[1] ** 2
            stored = ctx.load_progress(site.name)
            if stored is None:
                order = LearnableOrder(
                    first[site.name], blocks, self.matching.noise, ctx.generator(site.name)
                )
                module = LayerLearning(
                    problems.problem(site),
                    problems.heldout_grams(site),
                    order,
                    self.matching,
                    self.optimizer,
                    self.steps,
                    self.check_every,
                )
                fit(
                    module,
                    ctx.progress_dir / f"checkpoints-{site.name}",
                    epochs=1,
                    device="cpu",
                    tensors=[torch.arange(self.steps)],
                    curve=ctx.curve(site.name),
                )
                stored = {"order": module.best_order}
                ctx.save_progress(site.name, stored)
            orders[site.name] = stored["order"]
            ctx.progress(number, len(problems.sites), "site")
        for site in problems.sites:
            ctx.keep_curve(site.name, "curves")
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
