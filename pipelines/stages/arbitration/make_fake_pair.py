"""A pair whose best arbitration is known, made of tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from effllm.modules.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Seed, Word
from effllm.pipelines.artifacts.arbitration import ArbitrationPair
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class MakeFakePair(Stage):
    """Draw problems and tables of a planted world.

    Args:
        name: of the pair, for reports.
        positions: of a problem.
        both: chance that both tokens are right.
        target_right: that only the target's is.
        draft_right: that only the draft's is.
        neither: that none is.
        signal: mean of each half of the signal, in its standard deviations.
        train: problems that policies learn from.
        validation: problems that choices are made on.
        test: problems that are reported on.
        block: K, drafted tokens of a block.
        decisions: mismatches of a problem that are arbitrated.
        draft_cost: of a draft step, in target steps.
        verified_cost: of one more token in a target pass, in target steps.
        policy_cost: of a call of the policy, in target steps.
        seed: of all draws.
    """

    OUTPUT: ClassVar = ArbitrationPair

    name: Word
    positions: PositiveInt
    both: NonNegativeFloat
    target_right: NonNegativeFloat
    draft_right: NonNegativeFloat
    neither: NonNegativeFloat
    signal: NonNegativeFloat
    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt
    block: NonNegativeInt
    decisions: PositiveInt
    draft_cost: NonNegativeFloat
    verified_cost: NonNegativeFloat
    policy_cost: NonNegativeFloat
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`pair.json`, `problems.jsonl` and `tables.safetensors`."""
        from effllm.modules.arbitration.cost_model import CostModel
        from effllm.modules.arbitration.fake import VOCABULARY, World, make_fake
        from effllm.modules.arbitration.problems import END, Split

        world = World(
            positions=self.positions,
            both=self.both,
            target_right=self.target_right,
            draft_right=self.draft_right,
            neither=self.neither,
            signal=self.signal,
        )
        counts: dict[Split, int] = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        problems, target, draft = make_fake(world, counts, ctx.generator(f"fake/{self.seed}"))
        costs = CostModel(
            draft=self.draft_cost,
            verified=self.verified_cost,
            policy=self.policy_cost,
            block=self.block,
        )
        info = {
            "name": self.name,
            "costs": asdict(costs),
            "decisions": self.decisions,
            "budget": self.positions + 2,
            "end": END,
            "special": [0, END],
            "pieces": ["", "", *"01tdsuvwxy"][:VOCABULARY],
            "best_accuracy": world.best_accuracy,
            "target_accuracy": world.target_accuracy,
        }
        tables = {"target": target, "draft": draft}
        ArbitrationPair.write(ctx.workdir, info=info, problems=problems, tables=tables)
        return {"best_accuracy": world.best_accuracy, "target_accuracy": world.target_accuracy}
