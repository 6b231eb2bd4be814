"""Arbiters trained by reinforcement on verdicts of whole outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from effllm.modules.ranges import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Ratio,
)
from effllm.modules.trainer import ON_CPU, RESULT_KEYS
from effllm.pipelines.artifacts.arbitration import (
    Arbiters,
    ArbitrationPair,
    BranchTries,
    Headroom,
)
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.training import TrainingStage, unread

# The module clips and steps itself, several times a batch.
OWN_STEPS = {key: RESULT_KEYS[key] for key in ("gradient_clip_val", "accumulate_grad_batches")}


@dataclass(frozen=True, kw_only=True)
class TrainPolicy(TrainingStage):
    """Go on from warm-started policies with rollouts; where the gate is closed, leave them.

    Args:
        epochs: of training; a checkpoint after each.
        iterations: of an epoch: rollouts with the policy of the moment, then passes over them.
        problems: of an iteration.
        group: outputs of each problem, compared with each other.
        advantage: what a decision is credited with: its output's reward over the mean of the
            others (RLOO), the same in deviations of the group (GRPO), or what it gained on the
            other action, followed to the end (fork).
        passes: over an iteration's decisions.
        minibatch: decisions of a step.
        floor: least chance of either action in rollouts.
        clip: of the ratio of chances.
        kl_weight: of the distance from the warm start.
        entropy_weight: of the entropy of actions.
        kl_stop: passes end at this mean distance from the acting policy, nats.
        speed_weight: of the predicted saving in the reward of right answers.
    """

    INPUTS: ClassVar = {
        "pair": ArbitrationPair,
        "branches": BranchTries,
        "warm": Arbiters,
        "headroom": Headroom,
    }
    OUTPUT: ClassVar = Arbiters
    VOLATILE: ClassVar = unread(*OWN_STEPS)
    DIGEST_DEFAULTS: ClassVar = {**TrainingStage.DIGEST_DEFAULTS, "advantage": "leave_one_out"}

    epochs: PositiveInt
    iterations: PositiveInt
    problems: PositiveInt
    group: PositiveInt
    advantage: Literal["leave_one_out", "group_deviation", "fork"]
    passes: PositiveInt
    minibatch: PositiveInt
    floor: Ratio
    clip: PositiveFloat
    kl_weight: NonNegativeFloat
    entropy_weight: NonNegativeFloat
    kl_stop: PositiveFloat
    speed_weight: NonNegativeFloat

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 2:
            raise ValueError(f"need group >= 2 to compare outputs, got {self.group}")
        if self.floor >= 0.5:
            raise ValueError(f"need floor < 0.5 to leave the policy a choice, got {self.floor}")

    def run(self, ctx: StageContext) -> Metrics:
        """`arbiters.json`, and per seed a policy and its curve."""
        from effllm.modules.arbitration.cost_model import rewards
        from effllm.modules.arbitration.reinforcement import ArbiterTraining, Rollouts

        tries, warm = ctx.input("branches", BranchTries), ctx.input("warm", Arbiters)
        branches = tries.load("train")
        reward = rewards(branches, ctx.input("pair", ArbitrationPair).costs, self.speed_weight)
        gate_open = bool(ctx.input("headroom", Headroom).figures["gate"]["open"])
        policies = warm.policies()
        for number, (seed, policy) in enumerate(policies.items()):
            if not gate_open:
                break
            policy.train().requires_grad_(True)
            arbiter = ArbiterTraining(
                policy,
                self.optimizer,
                floor=self.floor,
                passes=self.passes,
                minibatch=self.minibatch,
                clip=self.clip,
                kl_weight=self.kl_weight,
                entropy_weight=self.entropy_weight,
                kl_stop=self.kl_stop,
                seed=seed,
            )
            rollouts = Rollouts(
                arbiter,
                branches,
                reward,
                problems=self.problems,
                group=self.group,
                length=self.iterations,
                seed=seed,
                advantage=self.advantage,
            )
            self.fit(
                ctx,
                arbiter,
                f"seed-{seed}",
                curve=f"curve-{seed}.csv",
                progress=False,
                # The tries and the policy are small; rollouts are walks in memory.
                own=ON_CPU | OWN_STEPS,
                epochs=self.epochs,
                batches=rollouts,
            )
            ctx.progress(number + 1, len(policies), "seed")
        info = {
            **warm.info,
            "trainer": "reinforcement",
            "proposer": tries.proposer,
            "speed_weight": self.speed_weight,
            **({"advantage": self.advantage} if self.advantage != "leave_one_out" else {}),
            "gate_open": gate_open,
        }
        Arbiters.write(ctx.workdir, info, policies)
        return {"trained": gate_open, "outputs_per_seed": self._outputs if gate_open else 0}

    @property
    def _outputs(self) -> int:
        return self.epochs * self.iterations * self.problems * self.group
