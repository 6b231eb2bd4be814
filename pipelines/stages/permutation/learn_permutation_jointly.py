"""Learn the orders of all sites together, through the whole model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from effllm.modules.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Seed
from effllm.modules.trainer import one_device
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
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
class LearnPermutationJointly(TrainingStage):
    """Cost matrices of every site, trained on the model's own loss.

    Args:
        matching: how costs become orders.
        loss: next_token (the paper) or hidden_state (PermLLM).
        distillation: weight of the layers' output errors; the paper's alpha.
        epochs: passes over the calibration windows.
        batch_windows: windows per step.
        window_tokens: tokens of each window that are used, from its start.
        check_every: steps between looks at the held-out loss, which then chooses among the steps
            and the start; 0: the last step's orders.
        pruner: whose scores decide the masks, on the dense model's calibration inputs.
        pattern: N:M.
        level: gather or free.
        seed: of the shuffling and the first costs.
    """

    INPUTS: ClassVar = {
        "model": Checkpoint,
        "windows": Windows,
        "heldout": Windows,
        "gram": Grams,
        "heldout_gram": Grams,
        "start": Permutation,
    }
    OUTPUT: ClassVar = Permutation

    matching: "Matching"
    loss: Literal["next_token", "hidden_state"]
    distillation: NonNegativeFloat
    epochs: PositiveInt
    batch_windows: PositiveInt
    window_tokens: PositiveInt
    check_every: NonNegativeInt
    pruner: "ScoringPruner"
    pattern: "Grouped"
    level: Literal["gather", "free"]
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """Goes on at the last checkpoint."""
        from effllm.modules.permutation.learning import LearnableOrder, ModelLearning

        problems = SiteProblems(ctx, self.pruner, self.pattern, self.level, ctx.device)
        start = ctx.input("start", Permutation)
        first = start.orders()
        windows = ctx.input("windows", Windows).token_ids()[:, : self.window_tokens]
        heldout = ctx.input("heldout", Windows).token_ids()
        steps = self.optimizer_steps(len(windows), self.batch_windows, self.epochs)
        blocks = {
            site.name: self.matching.blocks(site.columns, self.pattern, site.name)
            for site in problems.sites
        }
        orders = [
            LearnableOrder(
                first[site.name],
                blocks[site.name],
                self.matching.noise,
                ctx.generator(site.name),
            )
            for site in problems.sites
        ]
        module = ModelLearning(
            problems.model,
            problems.sites,
            [problems.problem(site) for site in problems.sites],
            orders,
            self.matching,
            self.loss,
            self.distillation,
            self.optimizer,
            steps,
            self.check_every,
            heldout.split(self.batch_windows),
        )
        self.fit(
            ctx,
            module,
            curve="curve.csv",
            own=one_device(self.trainer),  # the frozen model is there
            epochs=self.epochs,
            tensors=[windows],
            batch_size=self.batch_windows,
            seed=self.seed,
        )
        found = {
            site.name: order
            for site, order in zip(problems.sites, module.chosen_orders(), strict=True)
        }
        about = {
            **start.about,
            "found": [
                *start.about["found"],
                {
                    "kind": "Learning",
                    "matching": described(self.matching),
                    "steps": steps,
                    "objective": self.loss,
                },
            ],
        }
        trained = sum(count * size**2 for count, size in blocks.values())
        return {**problems.publish(ctx, found, about), "trained_numbers": trained}
