"""Gradients, small worlds whose best policy is known, and going on after an interruption."""

from functools import partial

import pytest
import torch
from arbitration_worlds import comb, world

from effllm.modules.arbitration.branches import join
from effllm.modules.arbitration.exploring import Pair, explore
from effllm.modules.arbitration.fake import VOCABULARY, TableStepper, World, make_fake
from effllm.modules.arbitration.forks import Forks, area_under_curve, labelled
from effllm.modules.arbitration.observations import FEATURES, TokenClasses, column
from effllm.modules.arbitration.policy import Policy, chance
from effllm.modules.arbitration.reinforcement import (
    ArbiterTraining,
    Rollouts,
    bernoulli_kl,
    group_deviation,
    informative,
    leave_one_out,
    roll_out,
    surrogate,
)
from effllm.modules.arbitration.rules import NEVER
from effllm.modules.arbitration.selection import at_threshold, choose_threshold
from effllm.modules.arbitration.warm_start import WarmStart
from effllm.modules.training import fit

ALL = frozenset(FEATURES)
FLOOR = 0.05


def arbiter_of(policy, lr=3e-2, seed=0, **changes):
    settings = {
        **{"floor": FLOOR, "passes": 4, "minibatch": 1024, "clip": 0.2, "seed": seed},
        **{"kl_weight": 0.0, "entropy_weight": 0.0, "kl_stop": 0.03},
    }
    return ArbiterTraining(policy, partial(torch.optim.Adam, lr=lr), **settings | changes)


def reinforce(policy, branches, folder, *, epochs=10, group=8, **changes):
    arbiter = arbiter_of(policy, **changes)
    rollouts = Rollouts(
        arbiter, branches, branches.right.float(), problems=64, group=group, length=10, seed=1
    )
    fit(arbiter, folder, epochs=epochs, accelerator="cpu", batches=rollouts)
    return policy


def linear():
    return Policy("linear", ALL)


def test_expected_reward_is_that_of_all_paths_and_its_gradient_that_of_differences():
    tries = join([comb(3, seed=1), comb(3, seed=2)])
    reward = tries.right.double()
    probability = torch.rand(
        len(tries.problem), generator=torch.Generator().manual_seed(0)
    ).double()
    probability.requires_grad_(True)
    after, value = tries.value(probability, reward)
    for problem, root in enumerate(tries.roots.tolist()):
        total = torch.zeros((), dtype=torch.float64)
        for actions in torch.cartesian_prod(*[torch.tensor([0, 1])] * 3).tolist():
            here, weight = root, 1.0
            for action in actions:
                weight = weight * (probability[here] if action else 1 - probability[here])
                here = int(tries.children[here, action])
            total = total + weight * reward[-1 - here]
        torch.testing.assert_close(value[problem], total)
    (gradient,) = torch.autograd.grad(value.sum(), probability)
    step = 1e-6
    for node in range(len(tries.problem)):
        moved = probability.detach().clone()
        moved[node] += step
        change = (tries.value(moved, reward)[1] - value.detach()).sum() / step
        assert gradient[node] == pytest.approx(float(change), abs=1e-6)
    gained = (after[tries.roots, 1] - after[tries.roots, 0]).detach()
    torch.testing.assert_close(gradient[tries.roots], gained)


@pytest.mark.parametrize("advantage", ["leave_one_out", "fork"])
def test_group_gradients_are_the_exact_gradient_on_average(advantage):
    """20,000 groups of four on five decisions: every component within 4 standard errors."""
    tries = comb(5)
    reward = tries.right.float()
    scores = (tries.observations[:, 0] * 0.7).requires_grad_(True)
    probability = chance(scores, FLOOR)
    (exact,) = torch.autograd.grad(tries.value(probability, reward)[1].sum(), scores)
    groups, size = 20_000, 4
    problems = torch.zeros(groups, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    batch, _ = roll_out(tries, probability.detach(), reward, problems, size, generator, advantage)
    now = chance(scores, FLOOR)[batch["nodes"]]
    taken = torch.where(batch["actions"].bool(), now, 1 - now)
    # One gradient per group: the score function of its decisions, weighted.
    per_decision = torch.autograd.grad(taken.log().sum(), scores, retain_graph=True)[0]
    assert per_decision.shape == exact.shape
    slope = (
        torch.where(
            batch["actions"].bool(),
            1 / now.detach(),
            -1 / (1 - now.detach()),
        )
        * ((1 - 2 * FLOOR) * torch.sigmoid(scores) * (1 - torch.sigmoid(scores))).detach()[
            batch["nodes"]
        ]
    )
    estimates = torch.zeros(groups, len(scores))
    estimates.index_put_(
        (batch["problem"], batch["nodes"]), slope * batch["advantages"] / size, accumulate=True
    )
    error = estimates.std(dim=0) / groups**0.5
    assert ((estimates.mean(dim=0) - exact).abs() <= 4 * error + 1e-7).all()
    # The loss that is trained on has that gradient, before the first step.
    loss = surrogate(now, batch, count=groups * size, clip=0.2)
    (trained,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(-trained, estimates.mean(dim=0), atol=1e-6, rtol=1e-4)


def test_deviations_of_a_group_weigh_hard_and_easy_problems_more():
    rewards = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0], [1.0, 1, 1, 1, 0, 0, 0, 0]])
    hard, even = group_deviation(rewards).abs().mean(dim=1) / leave_one_out(rewards).abs().mean(
        dim=1
    )
    assert hard / even == pytest.approx((0.25 / (7 / 64)) ** 0.5, rel=1e-3)
    assert not group_deviation(torch.ones(1, 8)).any()


def test_degenerate_groups():
    rewards = torch.tensor([[1.0] * 8, [0.0] + [0.95] * 7, [0.0] * 8])
    assert informative(rewards).tolist() == [False, True, False]
    advantages = leave_one_out(rewards)
    assert not advantages[[0, 2]].any()
    assert advantages[1, 0] == pytest.approx(-0.95)
    equal = world(torch.zeros(16), torch.ones(16, 2))
    arbiter = arbiter_of(linear())
    batch = Rollouts(
        arbiter, equal, equal.right.float(), problems=16, group=4, length=1, seed=0
    ).collect(0)
    assert len(batch["actions"]) == 0 and float(batch["same_rewards"]) == 1


def test_an_episode_weighs_by_its_decisions():
    """Twice the decisions at the same N weigh twice, not the same."""
    batch = {
        "actions": torch.tensor([1]),
        "behaviour": torch.tensor([0.5]),
        "advantages": torch.tensor([1.0]),
    }
    twice = {name: value.repeat(2) for name, value in batch.items()}
    now = torch.tensor([0.5])
    one = surrogate(now, batch, count=10, clip=0.2)
    assert surrogate(now.repeat(2), twice, count=10, clip=0.2) == pytest.approx(2 * float(one))


def test_divergence_of_two_chances():
    p, q = torch.tensor([0.3, 0.0]), torch.tensor([0.6, 0.5])
    expected = [0.3 * torch.tensor(0.5).log() + 0.7 * torch.tensor(1.75).log(), 0.6931472]
    assert bernoulli_kl(p, q).tolist() == pytest.approx([float(one) for one in expected])


def test_a_two_armed_world_is_solved(tmp_path):
    """The draft is right with .9 where the feature is positive, else .1; the target the reverse."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2000, generator=generator)
    draft = torch.rand(2000, generator=generator) < torch.where(features > 0, 0.9, 0.1)
    branches = world(features, torch.stack([~draft, draft], dim=1))
    policy = reinforce(linear(), branches, tmp_path)
    with torch.no_grad():
        found = at_threshold(branches, policy(branches.observations), 0.0).accuracy
    bayes = float(torch.where(features > 0, draft, ~draft).float().mean())
    assert found > bayes - 0.02


def test_a_draft_that_is_never_right_is_hardly_taken(tmp_path):
    features = torch.randn(500, generator=torch.Generator().manual_seed(0))
    never = torch.tensor([[True, False]]).repeat(500, 1)
    policy = reinforce(linear(), world(features, never), tmp_path)
    with torch.no_grad():
        taken = chance(policy(world(features, never).observations), FLOOR)
    assert float(taken.mean()) < FLOOR + 0.02


def test_without_complementarity_the_target_is_shipped(tmp_path):
    """Both are right half of the time, whatever is seen: nothing can be gained."""
    generator = torch.Generator().manual_seed(0)
    branches, other = (
        world(
            torch.randn(400, generator=generator),
            torch.stack([torch.rand(400, generator=generator) < 0.5] * 2, dim=1)
            & torch.tensor([True, False]),
        )
        for _ in range(2)
    )
    policy = reinforce(linear(), branches, tmp_path, epochs=3)
    with torch.no_grad():
        point = choose_threshold(other, policy(other.observations), 40)
    assert point.threshold == NEVER and point.gain == 0 and point.rate == 0


def test_rollouts_are_those_of_the_weights_of_the_moment(tmp_path, monkeypatch):
    """A stream that is one update old is refused by the training itself."""
    branches = world(torch.randn(200), torch.rand(200, 2) < 0.5)
    kept = Rollouts.collect

    def late(stream, iteration):
        batch = kept(stream, iteration)
        with torch.no_grad():
            stream.arbiter.policy.layers[-1].bias += 0.1
        return batch

    monkeypatch.setattr(Rollouts, "collect", late)
    with pytest.raises(AssertionError, match="stale"):
        reinforce(linear(), branches, tmp_path, epochs=1)


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path):
    generator = torch.Generator().manual_seed(0)
    branches = world(
        torch.randn(200, generator=generator), torch.rand(200, 2, generator=generator) < 0.5
    )
    whole = reinforce(Policy("mlp", ALL), branches, tmp_path / "whole", epochs=5)
    reinforce(Policy("mlp", ALL), branches, tmp_path / "parts", epochs=3)
    parts = reinforce(Policy("mlp", ALL), branches, tmp_path / "parts", epochs=5)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert not torch.equal(whole.layers[0].weight, Policy("mlp", ALL).layers[0].weight)


def test_an_untrained_policy_is_near_the_target():
    policy = Policy("mlp", ALL)
    scores = policy(torch.randn(50, len(FEATURES)))
    assert scores.sigmoid().tolist() == pytest.approx([0.1] * 50)
    assert chance(torch.tensor([-99.0, 99.0]), FLOOR).tolist() == pytest.approx([0.05, 0.95])


def test_hidden_features_are_nothing_to_a_policy():
    policy = Policy("mlp", frozenset({"phase"}))
    torch.nn.init.normal_(policy.layers[-1].weight)
    seen = torch.randn(20, len(FEATURES))
    moved = seen.clone()
    moved[:, : FEATURES.index("phase")] += 1
    assert torch.equal(policy(seen), policy(moved))
    moved[:, FEATURES.index("phase")] += 1
    assert not torch.equal(policy(seen), policy(moved))


@pytest.fixture(scope="module")
def planted():
    """The planted pair: world, and tries by split."""
    planted = World()
    counts = {"train": 3000, "validation": 2000, "test": 8000}
    problems, *tables = make_fake(planted, counts, torch.Generator().manual_seed(0))
    classes = TokenClasses(["x"] * VOCABULARY, frozenset({0, 1}))
    pair = Pair(*(TableStepper(one) for one in tables), classes, 1, 4, 6, planted.positions + 2)
    found = {
        split: explore(pair, [one for one in problems if one.split == split]) for split in counts
    }
    return planted, found


def test_the_planted_optimum_is_that_of_the_rule_that_knows_the_world(planted):
    """8,000 problems: the standard error is half a point; within 2.5 of it."""
    known, found = planted
    branches = found["test"]
    halves = [2 * (column(branches.observations, f"{name}_margin").log() - 1) for name in
              ("draft", "target")]  # fmt: skip
    lean = 2 * known.signal * (halves[0] - halves[1])
    odds = torch.tensor(known.draft_right / known.target_right).log()
    accuracy = at_threshold(branches, lean, -float(odds)).accuracy
    assert accuracy == pytest.approx(known.best_accuracy, abs=2.5 * 0.0054)
    target = branches.walk(torch.zeros(len(branches.problem), dtype=torch.bool))
    right = float(branches.right[target].double().mean())
    assert right == pytest.approx(known.target_accuracy, abs=2.5 * 0.0056)


def test_a_warm_start_is_within_a_point_of_the_planted_optimum(planted, tmp_path):
    """Against the best rule on the very same problems, so that their draw does not matter."""
    known, found = planted
    train, validation, test = (found[split] for split in ("train", "validation", "test"))
    forks = Forks.of(train)
    nodes, labels = labelled(forks, "verdict", torch.Generator())
    policy = Policy("mlp", ALL)
    policy.fit_scale(train.observations[forks.nodes])
    fit(
        WarmStart(policy, partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.01)),
        tmp_path,
        epochs=10,
        accelerator="cpu",
        tensors=[train.observations[nodes], labels],
        batch_size=64,
    )
    policy.requires_grad_(False)
    point = choose_threshold(validation, policy(validation.observations), 40)
    mine = at_threshold(test, policy(test.observations), point.threshold).accuracy
    halves = [2 * (column(test.observations, f"{name}_margin").log() - 1) for name in
              ("draft", "target")]  # fmt: skip
    lean = 2 * known.signal * (halves[0] - halves[1])
    odds = torch.tensor(known.draft_right / known.target_right).log()
    assert mine > at_threshold(test, lean, -float(odds)).accuracy - 0.01


def test_labels_of_the_three_kinds(planted):
    _, found = planted
    forks = Forks.of(found["train"])
    nodes, won = labelled(forks, "verdict", torch.Generator())
    cells = forks.cells()
    assert [int((won == one).sum()) for one in (0, 1)] == [cells["10"], cells["01"]]
    everything, kept = labelled(forks, "same_answer", torch.Generator())
    assert len(everything) == sum(cells.values())
    # Where only one of the two is right, the answer cannot be the same.
    assert not kept[forks.difference != 0].any() and kept.sum() > 0
    same, dealt = labelled(forks, "shuffled", torch.Generator().manual_seed(0))
    assert torch.equal(same, nodes) and dealt.sum() == won.sum() and not torch.equal(dealt, won)


def test_area_under_the_curve_is_the_chance_of_the_right_order():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (60,), generator=generator).float()
    positive = torch.rand(60, generator=generator) < 0.4
    pairs = [
        (float(a > b) + 0.5 * float(a == b)) for a in scores[positive] for b in scores[~positive]
    ]
    assert area_under_curve(scores, positive) == pytest.approx(sum(pairs) / len(pairs))
