"""Choose, site by site, among orders that other stages found."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import NonNegativeFloat, PositiveInt, Seed
from effllm.modules.trainer import one_device
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.stage import Many, Metrics, StageContext
from effllm.pipelines.stages.permutation.problems import SiteProblems, require_alike
from effllm.pipelines.stages.training import TrainingStage

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.permutation.choosing import OrderChoice
    from effllm.modules.sparsity.patterns import Grouped
    from effllm.modules.sparsity.pruners import ScoringPruner


@dataclass(frozen=True, kw_only=True)
class ChoosePermutation(TrainingStage):
    """One number for each site and order, trained on what the whole model loses.

    Args:
        rule: `learned`; or a control: `error` takes the order with the least held-out error of the
            site's own layers, `random` the best of random choices by the model's held-out loss.
        looks: random choices that are looked at.
        epochs: passes over the calibration windows.
        batch_windows: windows per step.
        window_tokens: tokens of each window that are used, from its start.
        check_every: steps between looks at the held-out loss, which chooses among them.
        lead: of the first candidate before any step, a logit.
        pruner: that of the candidates.
        pattern: that of the candidates.
        level: that of the candidates.
        seed: of the draws.
    """

    INPUTS: ClassVar = {
        "model": Checkpoint,
        "windows": Windows,
        "heldout": Windows,
        "gram": Grams,
        "heldout_gram": Grams,
        "candidates": Many(Permutation, ordered=True),
    }
    OUTPUT: ClassVar = Permutation

    rule: Literal["learned", "error", "random"]
    looks: PositiveInt
    epochs: PositiveInt
    batch_windows: PositiveInt
    window_tokens: PositiveInt
    check_every: PositiveInt
    lead: NonNegativeFloat
    pruner: "ScoringPruner"
    pattern: "Grouped"
    level: Literal["gather", "free"]
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """Goes on at the last checkpoint."""
        candidates = ctx.input_list("candidates", Permutation)
        if len(candidates) < 2:
            raise ConfigError("a choice needs two candidates at least")
        for candidate in candidates:
            require_alike(candidate, self.pattern, self.pruner, self.level)
        problems = SiteProblems(ctx, self.pruner, self.pattern, self.level, ctx.device)
        orders = [candidate.orders() for candidate in candidates]
        choice = self._choice(ctx, candidates, problems)
        found = {
            site.name: orders[number][site.name]
            for site, number in zip(problems.sites, choice.tolist(), strict=True)
        }
        about = {
            **candidates[0].about,
            "found": [
                {
                    "kind": "Choice",
                    "rule": self.rule,
                    "candidates": [one.about["found"] for one in candidates],
                }
            ],
        }
        taken = {
            f"taken_{number}": int((choice == number).sum()) for number in range(len(candidates))
        }
        return {**problems.publish(ctx, found, about), **taken}

    def _choice(
        self, ctx: StageContext, candidates: list[Permutation], problems: SiteProblems
    ) -> "Tensor":
        """(S,) number of each site's candidate."""
        import torch

        if self.rule == "error":
            errors = [
                {row["site"]: row["heldout_error"] for row in one.read_rows("sites.jsonl")}
                for one in candidates
            ]
            rows = [[error[site.name] for error in errors] for site in problems.sites]
            return torch.tensor(rows).argmin(dim=1)
        windows = ctx.input("windows", Windows).token_ids()[:, : self.window_tokens]
        steps = self.optimizer_steps(len(windows), self.batch_windows, self.epochs)
        module = self._module(ctx, candidates, problems, steps)
        if self.rule == "random":
            generator = ctx.generator("choices")
            for number in range(self.looks):
                size = (len(problems.sites),)
                module.look(torch.randint(len(candidates), size, generator=generator))
                ctx.progress(number + 1, self.looks, "choice")
        else:
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
        return module.best_choice

    def _module(
        self,
        ctx: StageContext,
        candidates: list[Permutation],
        problems: SiteProblems,
        steps: int,
    ) -> "OrderChoice":
        from effllm.modules.permutation.choosing import OrderChoice
        from effllm.modules.permutation.orders import ordered_mask

        masks = []
        for candidate in candidates:
            orders = candidate.layer_orders()
            masks.append(
                {
                    name: ordered_mask(problems.score(name), orders[name], self.pattern)
                    for name in problems.layers
                }
            )
        return OrderChoice(
            problems.model,
            problems.sites,
            masks,
            self.optimizer,
            steps=steps,
            check_every=self.check_every,
            heldout=ctx.input("heldout", Windows).token_ids().split(self.batch_windows),
            lead=self.lead,
            seed=self.seed,
        )
