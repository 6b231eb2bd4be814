"""Rules behind one interface, their limits, and how operating points are chosen."""

import math

import numpy as np
import pytest
import torch
from arbitration_worlds import comb, world

from effllm.modules.arbitration.cost_model import CostModel, problem_of_leaves, rewards
from effllm.modules.arbitration.judging import bounds, judge, ship
from effllm.modules.arbitration.observations import FEATURES, column
from effllm.modules.arbitration.policy import Policy
from effllm.modules.arbitration.problems import SPLITS, encode, make_problems, solve
from effllm.modules.arbitration.rules import ALWAYS, NEVER, ONE_NUMBER, AtRandom
from effllm.modules.arbitration.selection import at_threshold, choose_threshold, operating_points
from effllm.modules.arbitration.statistics import mcnemar, paired_gain
from effllm.modules.errors import DataError


def random_observations(count=200):
    generator = torch.Generator().manual_seed(0)
    laws = torch.randn(2, count, 8, generator=generator).mul(2).log_softmax(dim=-1)
    seen = torch.zeros(count, len(FEATURES))
    tokens = laws.argmax(dim=-1)
    for model, law in zip(("target", "draft"), laws, strict=True):
        for whose, token in zip(("target", "draft"), tokens, strict=True):
            place = FEATURES.index(f"{model}_log_p_{whose}")
            seen[:, place] = law.gather(-1, token[:, None])[:, 0]
    return seen, laws.exp(), tokens


@pytest.mark.parametrize("rule", ONE_NUMBER)
def test_every_rule_ends_in_never_and_always(rule):
    tries = comb(4)
    tries.observations.copy_(torch.rand_like(tries.observations))
    scores = ONE_NUMBER[rule](tries.observations)
    points = operating_points(tries, scores, 5)
    assert (points[0].threshold, points[-1].threshold) == (NEVER, ALWAYS)
    assert (points[0].rate, points[0].gain) == (0, 0)
    assert at_threshold(tries, scores, ALWAYS).accuracy == float(tries.right[-1])


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 1.0])
def test_the_ensemble_takes_what_the_mixed_law_prefers(weight):
    seen, laws, (ours, theirs) = random_observations()
    mixed = weight * laws[0] + (1 - weight) * laws[1]
    better = mixed.gather(-1, theirs[:, None]) > mixed.gather(-1, ours[:, None])
    differ = ours != theirs
    accept = ONE_NUMBER["ensemble"](seen) > weight
    assert torch.equal(accept[differ], better[:, 0][differ])
    if weight in (0, 1):
        assert bool((accept[differ] == (weight == 0)).all())


def test_a_linear_policy_on_one_feature_is_its_gate():
    seen = torch.rand(50, len(FEATURES))
    policy = Policy("linear", frozenset(FEATURES))
    with torch.no_grad():
        policy.layers[0].weight[0, FEATURES.index("target_top3_entropy")] = 2.0
        order = policy(seen).argsort()
    assert torch.equal(order, ONE_NUMBER["entropy"](seen).argsort())


def test_random_choices_have_their_rate_and_are_the_same_again():
    """5,000 draws: within four standard errors."""
    seen = torch.zeros(5000, len(FEATURES))
    found = AtRandom(rate=0.3, seed=1)(seen)
    assert float(found.mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 5000))
    assert torch.equal(found, AtRandom(rate=0.3, seed=1)(seen))
    assert not torch.equal(found, AtRandom(rate=0.3, seed=2)(seen))


def test_the_best_threshold_is_found():
    features = torch.linspace(-1, 1, 400)
    right = torch.stack([features < 0.5, features > 0.5], dim=1)
    branches = world(features, right)
    point = choose_threshold(branches, column(branches.observations, FEATURES[0]), 40)
    assert point.accuracy > 0.97 and point.threshold == pytest.approx(0.5, abs=0.06)
    assert point.gain == pytest.approx(point.accuracy - 0.75, abs=1e-2)
    assert point.bound < point.gain


def test_what_does_harm_is_not_shipped():
    right = torch.tensor([[True, False]]).repeat(50, 1)
    branches = world(torch.randn(50), right)
    target = judge(
        "target", ONE_NUMBER["margin"], branches, branches, candidates=1, threshold=NEVER
    )
    harmful = judge("rl", AtRandom(rate=0.5, seed=0), branches, branches, candidates=3,
                    seed=4, threshold=0.5)  # fmt: skip
    assert harmful.point.gain < 0
    shipped = ship("cospec", [harmful], target)
    assert shipped.key == "cospec-4" and shipped.point == target.point
    assert shipped.described["validation"]["threshold"] == "never"


def test_oracles_by_trying_everything():
    tries = comb(4, seed=5)
    found = bounds(tries)
    best = any(bool(one) for one in tries.right)
    assert bool(found["oracle"]) == best
    always_target = torch.zeros(len(tries.problem), dtype=torch.bool)
    one_each = [always_target.clone() for _ in range(len(tries.problem))]
    for node, accept in enumerate(one_each):
        accept[node] = True
    single = any(bool(tries.right[tries.walk(accept)]) for accept in one_each)
    assert bool(found["oracle_one"]) == single


def test_costs_by_hand_and_speed_in_right_answers_only():
    branches = world(torch.zeros(3), torch.tensor([[1, 1], [1, 0], [0, 1]]))
    costs = CostModel(draft=0.1, verified=0.05, policy=0.02, block=4)
    branches.counts[:, 0] = torch.tensor([2, 1] * 3)  # blocks: the draft's token saves one
    branches.counts[:, 2] = 5  # tokens
    per_leaf = costs.per_leaf(branches)
    assert per_leaf[:2].tolist() == pytest.approx([2 * 1.6 + 0.02, 1.6 + 0.02])
    assert problem_of_leaves(branches).tolist() == [0, 0, 1, 1, 2, 2]
    saved = 1 - 1.62 / 3.22
    expected = [1, 1 + 0.1 * saved, 1, 0, 0, 1 + 0.1 * saved]
    assert rewards(branches, costs, 0.1).tolist() == pytest.approx(expected)
    assert rewards(branches, costs, 0.0).tolist() == [1, 1, 1, 0, 0, 1]


def test_mcnemar_is_the_binomial_sum():
    for won, lost in ((0, 0), (3, 3), (1, 8), (12, 4), (30, 55)):
        total = won + lost
        law = [math.comb(total, k) / 2**total for k in range(total + 1)]
        brute = sum(one for one in law if one <= law[won] * (1 + 1e-9))
        assert mcnemar(won, lost) == pytest.approx(brute)


def test_paired_intervals_cover_over_seeds_and_problems():
    """200 simulated tables with a known gain: 95 % nominal, at least 90 % found (p < .002)."""
    random, covered = np.random.default_rng(0), 0
    for number in range(200):
        base = random.random((1, 60)) < 0.5
        effect = 0.3 + 0.05 * random.standard_normal((5, 1))
        ours = np.where(random.random((5, 60)) < effect, 1.0, base)
        gain = paired_gain(ours, base.astype(float), resamples=400, seed=number)
        covered += gain.low <= 0.15 <= gain.high
    assert covered >= 180


def test_skills_and_splits():
    assert solve("s", "dbca") == "abcd" and solve("o", "abjd") == "eacb"
    parts = {}
    for split in ("models", *SPLITS):
        problems = make_problems(split, 200, parts=3, share=0.5, seed=0)
        assert len({one.prompt for one in problems}) == 200
        parts[split] = {one.prompt[5 * k + 1 : 5 * k + 5] for one in problems for k in range(3)}
    names = list(parts)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            assert not parts[one] & parts[other]


def test_answers_are_judged_exactly():
    (problem,) = make_problems("test", 1, parts=2, share=1.0, seed=0)
    right = [allowed[0] for allowed in problem.answer]
    other = [allowed[-1] for allowed in problem.answer]
    assert right != other and problem.right(right) and problem.right(other)
    assert problem.reading(right) == problem.reading(other)
    wrong = [*right[:-1], encode("s")[0]]
    assert not problem.right(wrong) and problem.reading(wrong) != problem.reading(right)
    assert not problem.right(right[:-1]) and not problem.right([*right, right[0]])


def test_few_strings_are_few_and_too_many_problems_are_refused():
    problems = make_problems("models", 300, parts=3, share=0.5, seed=0, strings={"o": 5})
    shown = {
        one.prompt[5 * k + 1 : 5 * k + 5]
        for one in problems
        for k in range(3)
        if one.skills[k] == "o"
    }
    assert len(shown) == 5
    with pytest.raises(DataError, match="100 are needed"):
        make_problems("models", 100, parts=1, share=0.0, seed=0, strings={"o": 5})
