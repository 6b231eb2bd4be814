"""Two small models trained from scratch to have different skills, and problems for policies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from effllm.modules.ranges import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    Word,
)
from effllm.pipelines.artifacts.arbitration import ArbitrationPair
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.training import TrainingStage


@dataclass(frozen=True, kw_only=True)
class TrainPair(TrainingStage):
    """Train target and draft on their own mixtures of two skills, from random weights.

    Args:
        name: of the pair, for reports.
        parts: of a problem.
        target_share: share of sorting in what the target learns; the rest is turning around.
        draft_share: in what the draft learns.
        target_weak: the target's weaker skill: `s` sorts, `o` turns around.
        draft_weak: the draft's.
        target_strings: different letters that the target's weaker skill is shown with: so few that
            some of it is learnt by heart only.
        draft_strings: that the draft's is shown with.
        target_habit: share of the target's texts with `;` where `,` is as good.
        draft_habit: of the draft's.
        target_layers: decoder blocks of the target.
        draft_layers: of the draft.
        target_width: hidden size of the target.
        draft_width: of the draft.
        draft_noise: null trains the draft. A number makes it of the target instead, each weight
            moved by so many deviations of its matrix: it knows nothing that its target does not.
        heads: of attention, in both.
        target_problems: that the target learns from, once each.
        draft_problems: that the draft learns from.
        batch_problems: of a step.
        train: problems that policies learn from.
        validation: problems that choices are made on.
        test: problems that are reported on.
        block: K, drafted tokens of a block.
        decisions: mismatches of a problem that are arbitrated.
        verified_cost: of one more token in a target pass, in target steps.
        policy_cost: of a call of the policy, in target steps.
        seed: of weights, problems and their order.
    """

    OUTPUT: ClassVar = ArbitrationPair
    DIGEST_DEFAULTS: ClassVar = {**TrainingStage.DIGEST_DEFAULTS, "draft_noise": None}

    name: Word
    parts: PositiveInt
    target_share: Fraction
    draft_share: Fraction
    target_weak: Literal["s", "o"]
    draft_weak: Literal["s", "o"]
    target_strings: PositiveInt
    draft_strings: PositiveInt
    target_habit: Fraction
    draft_habit: Fraction
    target_layers: PositiveInt
    draft_layers: PositiveInt
    target_width: PositiveInt
    draft_width: PositiveInt
    draft_noise: PositiveFloat | None
    heads: PositiveInt
    target_problems: PositiveInt
    draft_problems: PositiveInt
    batch_problems: PositiveInt
    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt
    block: NonNegativeInt
    decisions: PositiveInt
    verified_cost: NonNegativeFloat
    policy_cost: NonNegativeFloat
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`target/` and `draft/` in Hugging Face format, `pair.json` and `problems.jsonl`."""
        from random import Random

        from effllm.modules.arbitration.cost_model import CostModel
        from effllm.modules.arbitration.problems import CHARACTERS, END, Split, make_problems
        from effllm.modules.arbitration.toy import (
            SkillTraining,
            add_noise,
            as_sequences,
            character_model,
        )

        sizes = {}
        trained = ("target", "draft") if self.draft_noise is None else ("target",)
        for number, name in enumerate(trained):
            model = character_model(
                layers=getattr(self, f"{name}_layers"),
                width=getattr(self, f"{name}_width"),
                heads=self.heads,
                seed=2 * self.seed + number,
            )
            learnt = make_problems(
                "models",
                getattr(self, f"{name}_problems"),
                parts=self.parts,
                share=getattr(self, f"{name}_share"),
                seed=self.seed,  # so that equal mixtures are equal texts
                strings={getattr(self, f"{name}_weak"): getattr(self, f"{name}_strings")},
            )
            habit = getattr(self, f"{name}_habit")
            self.fit(
                ctx,
                SkillTraining(model.train(), self.optimizer),
                name,
                curve=f"{name}.csv",
                epochs=1,
                tensors=list(as_sequences(learnt, habit, Random(self.seed))),
                batch_size=self.batch_problems,
                seed=self.seed,
            )
            model.cpu().eval().save_pretrained(ctx.workdir / name)
            sizes[name] = sum(one.numel() for one in model.parameters())
        if self.draft_noise is not None:
            add_noise(model, self.draft_noise, ctx.generator("draft noise"))
            model.save_pretrained(ctx.workdir / "draft")
            sizes["draft"] = sizes["target"]
        counts: dict[Split, int] = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        problems = [
            problem
            for split, count in counts.items()
            for problem in make_problems(split, count, parts=self.parts, share=0.5, seed=self.seed)
        ]
        costs = CostModel(
            draft=sizes["draft"] / sizes["target"],
            verified=self.verified_cost,
            policy=self.policy_cost,
            block=self.block,
        )
        info = {
            "name": self.name,
            "costs": asdict(costs),
            "decisions": self.decisions,
            "budget": len(problems[0].answer) + 2,  # an end, and one token too many
            "end": END,
            "special": [0, END],
            "pieces": list(CHARACTERS),
            "best_accuracy": None,
            "target_accuracy": None,
        }
        ArbitrationPair.write(ctx.workdir, info=info, problems=problems)
        return {f"{name}_parameters": size for name, size in sizes.items()}
