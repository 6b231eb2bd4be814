"""Reinforcement learning of the arbiter from verdicts on whole outputs.

An iteration rolls out a group of outputs for some problems with the policy as it is, compares every
reward with the mean of the others of its group, and makes a few passes over all decisions:

    A_kg = R_kg - mean_{h != g} R_kh          (or as `Advantage` names them)
    L = -1/N sum min(rho A, clip(rho, 1 - eps, 1 + eps) A) + beta KL(pi, reference) - eta H(pi)

N is the number of decisions of the iteration: a mean per output would favour those with few. The
rollouts walk through tries that hold every outcome, so no model is run.
"""

import copy
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.utils.data import Dataset

from effllm.modules.arbitration.branches import Branches
from effllm.modules.arbitration.policy import Policy, chance
from effllm.modules.ranges import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from effllm.modules.training import OptimizerFactory

Batch = dict[str, Tensor]


Advantage = Literal["leave_one_out", "group_deviation", "fork"]


def advantages(kind: Advantage, rewards: Tensor) -> Tensor:
    """(P, G) advantages of whole outputs, from (P, G) rewards; forks have theirs by decision."""
    if kind == "group_deviation":
        return group_deviation(rewards)
    return leave_one_out(rewards)


def group_deviation(rewards: Tensor) -> Tensor:
    """(P, G) advantages in deviations of their group: very easy and very hard problems weigh more.

    Source: GRPO (arXiv:2402.03300).
    """
    spread = rewards.std(dim=1, keepdim=True, correction=0)
    return (rewards - rewards.mean(dim=1, keepdim=True)) / (spread + 1e-4)


def leave_one_out(rewards: Tensor) -> Tensor:
    """(P, G) advantages: each reward less the mean of the others of its group.

    Source: RLOO (arXiv:2402.14740).
    """
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


def informative(rewards: Tensor) -> Tensor:
    """(P,) bool: groups whose (P, G) rewards are not all equal; the others have no gradient."""
    return (rewards != rewards[:, :1]).any(dim=1)


def bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence of taking with chance p from taking with chance q, in nats, elementwise."""
    return torch.special.xlogy(p, p / q) + torch.special.xlogy(1 - p, (1 - p) / (1 - q))


def bernoulli_entropy(p: Tensor) -> Tensor:
    """Entropy of taking with chance p, in nats, elementwise."""
    return -torch.special.xlogy(p, p) - torch.special.xlogy(1 - p, 1 - p)


def surrogate(probability: Tensor, batch: Batch, *, count: int, clip: float) -> Tensor:
    """Clipped loss of some decisions, as their part of an iteration of `count` decisions.

    Args:
        probability: (M,) of taking the draft's token, as the policy is now.
        batch: (M,) `actions`, `behaviour` and `advantages`: 0 or 1, the chance of taking the
            draft's token when they were made, and what the outputs were worth.
        count: decisions of the whole iteration.
        clip: eps.
    """
    actions = batch["actions"].bool()
    now = torch.where(actions, probability, 1 - probability)
    before = torch.where(actions, batch["behaviour"], 1 - batch["behaviour"])
    ratio, advantages = now / before, batch["advantages"]
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantages, bounded * advantages).sum() / count


def roll_out(
    branches: Branches,
    probability: Tensor,
    reward: Tensor,
    problems: Tensor,
    group: int,
    generator: torch.Generator,
    advantage: Advantage = "leave_one_out",
) -> tuple[Batch, Tensor]:
    """Groups of outputs, sampled through the tries.

    A fork is a second output from every decision, where the other action was taken; the advantage
    is what the taken action gained on the mean of both.

    Args:
        branches: of the training problems.
        probability: (n,) of taking the draft's token at every node.
        reward: (m,) of every leaf.
        problems: (P,) numbers.
        group: G, outputs of each.
        generator: of the actions.
        advantage: what a decision is credited with.

    Returns:
        (M,) `nodes`, `actions`, `behaviour` and `advantages` of the decisions, and (P, G) rewards.
    """
    start = branches.roots[problems].repeat_interleave(group)
    taken: list[Tensor] = []

    def choose(nodes: Tensor) -> Tensor:
        drawn = torch.rand(len(nodes), generator=generator)
        taken.append((drawn < probability[nodes]).long())
        return taken[-1]

    here = torch.arange(len(start))
    owners, at = [], start
    leaves, met = branches.visit(start, choose)
    for nodes, actions in zip(met, taken, strict=True):
        inner = at >= 0
        here, at = here[inner], branches.children[nodes, actions]
        owners.append(here)
    rewards = reward[leaves].view(len(problems), group)
    none = torch.zeros(0, dtype=torch.long)
    nodes, actions, owner = (torch.cat(one) if one else none for one in (met, list(taken), owners))
    if advantage == "fork":
        other, _ = branches.visit(branches.children[nodes, 1 - actions], choose)
        share = torch.where(actions.bool(), probability[nodes], 1 - probability[nodes])
        credit = (1 - share) * (rewards.flatten()[owner] - reward[other])
    else:
        credit = advantages(advantage, rewards).flatten()[owner]
    batch = {
        "nodes": nodes,
        "actions": actions,
        "behaviour": probability[nodes],
        "advantages": credit,
        "problem": owner // group,
    }
    return batch, rewards


class Rollouts(Dataset[Batch]):
    """Iterations, each rolled out by the policy as it is when it is asked for.

    Args:
        arbiter: whose policy acts.
        branches: of the training problems.
        reward: (m,) of every leaf.
        problems: of an iteration.
        group: outputs of each.
        length: iterations of an epoch.
        seed: of all draws; each iteration has its own, the same after a resume.
        advantage: what a decision is credited with.
    """

    def __init__(
        self,
        arbiter: "ArbiterTraining",
        branches: Branches,
        reward: Tensor,
        *,
        problems: PositiveInt,
        group: PositiveInt,
        length: PositiveInt,
        seed: int,
        advantage: Advantage = "leave_one_out",
    ) -> None:
        self.advantage: Advantage = advantage
        self.arbiter, self.branches, self.reward = arbiter, branches, reward
        self.problems, self.group, self.length, self.seed = problems, group, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, iteration: int) -> Batch:
        return self.collect(iteration)

    @torch.no_grad()
    def collect(self, iteration: int) -> Batch:
        """One iteration: decisions of groups that tell something, and figures about all."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + iteration)
        observations = self.branches.observations
        probability = chance(self.arbiter.policy(observations), self.arbiter.floor)
        problems = torch.randperm(len(self.branches), generator=generator)[: self.problems]
        batch, rewards = roll_out(
            self.branches,
            probability,
            self.reward,
            problems,
            self.group,
            generator,
            self.advantage,
        )
        useful = informative(rewards)
        kept = useful[batch.pop("problem")]
        if self.advantage == "fork":  # which tell something within groups of equal rewards
            kept = batch["advantages"] != 0
        figures = {
            "reward": rewards.mean(),
            "same_rewards": 1 - useful.float().mean(),
            "acceptance": batch["actions"].float().mean(),
        }
        batch = {name: values[kept] for name, values in batch.items()}
        nodes = batch.pop("nodes")
        reference = chance(self.arbiter.reference(observations[nodes]), self.arbiter.floor)
        return {**batch, "observations": observations[nodes], "reference": reference, **figures}


class ArbiterTraining(L.LightningModule):
    """Train a policy on its own rollouts, several passes over each iteration.

    Args:
        policy: as the warm start left it; that is also what it is held near.
        optimizer: factory, called with the policy's parameters.
        floor: delta, least chance of either action in rollouts.
        passes: over an iteration's decisions.
        minibatch: decisions of a step.
        clip: eps, of the ratio.
        kl_weight: beta.
        entropy_weight: eta.
        kl_stop: passes end when the mean KL from the acting policy is above.
        seed: of the order of decisions.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerFactory,
        *,
        floor: Fraction,
        passes: PositiveInt,
        minibatch: PositiveInt,
        clip: PositiveFloat,
        kl_weight: NonNegativeFloat,
        entropy_weight: NonNegativeFloat,
        kl_stop: PositiveFloat,
        seed: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.optimizer = policy, optimizer
        self.reference = copy.deepcopy(policy).requires_grad_(False)
        self.floor, self.passes, self.minibatch, self.clip = floor, passes, minibatch, clip
        self.kl_weight, self.entropy_weight, self.kl_stop = kl_weight, entropy_weight, kl_stop
        self.seed = seed

    def loss(self, batch: Batch, count: int) -> tuple[Tensor, Tensor]:
        """Loss of some decisions of an iteration of `count`, and their chances now."""
        probability = chance(self.policy(batch["observations"]), self.floor)
        loss = surrogate(probability, batch, count=count, clip=self.clip)
        held = bernoulli_kl(probability, batch["reference"]).sum() / count
        spread = bernoulli_entropy(probability).sum() / count
        return loss + self.kl_weight * held - self.entropy_weight * spread, probability

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """One iteration: passes in minibatches until the policy has moved far enough."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        decisions = {
            name: batch[name]
            for name in ("actions", "behaviour", "advantages", "observations", "reference")
        }
        count = len(decisions["actions"])
        self.log_dict({name: batch[name] for name in ("reward", "same_rewards", "acceptance")})
        self.log("decisions", float(count))
        if not count:
            return
        with torch.no_grad():
            now = chance(self.policy(decisions["observations"]), self.floor)
        # The rollouts must be those of the weights of this moment.
        assert torch.allclose(now, decisions["behaviour"], atol=1e-6), "rollouts are stale"
        iteration = self.current_epoch * 1_000 + batch_index
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + iteration)
        for _ in range(self.passes):
            order = torch.randperm(count, generator=generator)
            for part in order.split(self.minibatch):
                some = {name: values[part] for name, values in decisions.items()}
                loss, _ = self.loss(some, count)
                optimizer.zero_grad()
                self.manual_backward(loss)
                self.clip_gradients(optimizer.optimizer, 1.0, "norm")
                optimizer.step()
            with torch.no_grad():
                after = chance(self.policy(decisions["observations"]), self.floor)
            moved = bernoulli_kl(decisions["behaviour"], after).mean()
            if moved > self.kl_stop:
                break
        ratio = torch.where(decisions["actions"].bool(), after / now, (1 - after) / (1 - now))
        self.log("kl_from_acting", moved)
        self.log("kl_from_reference", bernoulli_kl(after, decisions["reference"]).mean())
        self.log("effective_share", ratio.sum() ** 2 / (count * (ratio**2).sum()))
        self.log("entropy", bernoulli_entropy(after).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The configured optimiser."""
        return self.optimizer(list(self.policy.parameters()))
