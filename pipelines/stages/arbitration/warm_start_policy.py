"""Arbiters that tell winning forks from losing ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.arbitration.names import FeatureSet, Labels, Network
from effllm.modules.ranges import NonEmpty, PositiveInt, Seed
from effllm.modules.trainer import ON_CPU
from effllm.pipelines.artifacts.arbitration import Arbiters, BranchTries
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.training import TrainingStage


@dataclass(frozen=True, kw_only=True)
class WarmStartPolicy(TrainingStage):
    """Fit policies to labelled forks of the training problems, one per seed.

    Args:
        network: linear, or mlp.
        width: of the mlp's hidden layers.
        features: what is seen: all, or what the target or the draft alone gives.
        labels: `verdict` by the right answer, `same_answer` by the target's, `shuffled`: a control.
        epochs: passes over the forks.
        batch_forks: of a step.
        seeds: of weights, order and shuffling; a policy for each.
    """

    INPUTS: ClassVar = {"branches": BranchTries}
    OUTPUT: ClassVar = Arbiters

    network: Network
    width: PositiveInt
    features: FeatureSet
    labels: Labels
    epochs: PositiveInt
    batch_forks: PositiveInt
    seeds: NonEmpty[Seed]

    def run(self, ctx: StageContext) -> Metrics:
        """`arbiters.json`, and per seed a policy and its curve."""
        from effllm.modules.arbitration.forks import Forks, labelled
        from effllm.modules.arbitration.observations import FEATURE_SETS
        from effllm.modules.arbitration.policy import Policy
        from effllm.modules.arbitration.warm_start import WarmStart

        tries = ctx.input("branches", BranchTries)
        branches = tries.load("train")
        forks, used = Forks.of(branches), FEATURE_SETS[self.features]
        policies, counts = {}, []
        for number, seed in enumerate(self.seeds):
            generator = ctx.generator(f"shuffle/{seed}")
            nodes, labels = labelled(forks, self.labels, generator)
            counts = [int((labels == value).sum()) for value in (0, 1)]
            policy = Policy(self.network, used, width=self.width, seed=seed)
            policies[seed] = policy
            if not len(nodes):
                continue
            policy.fit_scale(branches.observations[forks.nodes])
            self.fit(
                ctx,
                WarmStart(policy, self.optimizer),
                f"seed-{seed}",
                curve=f"curve-{seed}.csv",
                progress=False,
                own=ON_CPU,  # the policy and its forks are small
                epochs=self.epochs,
                tensors=[branches.observations[nodes], labels],
                batch_size=self.batch_forks,
                seed=seed,
            )
            ctx.progress(number + 1, len(self.seeds), "seed")
        if not sum(counts):
            ctx.warn(
                f"none of {len(forks.nodes)} forks of {len(branches)} problems changes a verdict: "
                "there is nothing to learn from, and the policies stay as they began"
            )
        info = {
            "trainer": "warm start",
            "network": self.network,
            "width": self.width,
            "features": self.features,
            "used": sorted(used),
            "labels": self.labels,
            "proposer": tries.proposer,
            "speed_weight": 0.0,
            "seeds": list(self.seeds),
            "gate_open": True,
        }
        Arbiters.write(ctx.workdir, info, policies)
        return {"forks_rejected": counts[0], "forks_taken": counts[1]}
