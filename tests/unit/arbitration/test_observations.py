"""What is seen at a mismatch: values by hand, and what must not change them."""

import math

import pytest
import torch

from effllm.modules.arbitration.observations import (
    DISTRIBUTIONS,
    DRAFT_ONLY,
    FEATURES,
    TARGET_ONLY,
    TokenClasses,
    distribution_features,
)
from effllm.modules.errors import UnsupportedModelError

TARGET = torch.tensor([0.4, 0.3, 0.1, 0.05, 0.05, 0.04, 0.03, 0.03])
DRAFT = torch.tensor([0.2, 0.5, 0.1, 0.1, 0.04, 0.03, 0.02, 0.01])


def seen(target=None, draft=None, tokens=(0, 1)):
    target, draft = (TARGET.log(), DRAFT.log()) if target is None else (target, draft)
    ours, theirs = (torch.tensor([one]) for one in tokens)
    block_a, block_d = distribution_features(target[None], draft[None], ours, theirs)
    return dict(zip(DISTRIBUTIONS, block_a[0].tolist(), strict=True)), block_d[0]


def test_there_are_57_with_names_of_their_own():
    assert len(FEATURES) == len(set(FEATURES)) == 57
    assert set(FEATURES) > TARGET_ONLY and set(FEATURES) > DRAFT_ONLY
    assert not {one for one in TARGET_ONLY if "draft" in one}
    assert not {one for one in DRAFT_ONLY if "target" in one}


def test_values_by_hand():
    found, heads = seen()
    p, q = TARGET.tolist(), DRAFT.tolist()
    entropy = [-sum(one * math.log(one) for one in law) / math.log(8) for law in (p, q)]
    kl = [
        sum(a * math.log(a / b) for a, b in zip(one, other, strict=True))
        for one, other in ((p, q), (q, p))
    ]
    expected = {
        "target_log_p_target": math.log(0.4),
        "target_log_p_draft": math.log(0.3),
        "target_margin": math.log(4 / 3),
        "draft_log_p_draft": math.log(0.5),
        "draft_log_p_target": math.log(0.2),
        "draft_margin": math.log(2.5),
        "target_entropy": entropy[0],
        "draft_entropy": entropy[1],
        "target_top3_entropy": -sum(one * math.log(one) for one in (0.4, 0.3, 0.1)),
        "rank_of_draft_token": math.log(2) / math.log(9),
        "rank_of_target_token": math.log(2) / math.log(9),
        "target_top5_mass": 0.9,
        "draft_top5_mass": 0.94,
        "top5_overlap": 1.0,
        "kl_target_draft": kl[0],
        "kl_draft_target": kl[1],
        "total_variation": sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
        "difference_of_maxima": -0.1,
        "draft_token_is_second": 1.0,
        "target_token_is_second": 1.0,
    }
    assert found == pytest.approx(expected, abs=1e-5)
    assert heads[:8].tolist() == pytest.approx([math.log(one / 0.4) for one in p], abs=1e-5)
    assert heads[8:].tolist() == pytest.approx(
        [math.log(one / 0.5) for one in sorted(q)[::-1]], abs=1e-5
    )


def test_the_tail_is_one_bucket():
    """Of 16 tokens, eight are outside of both heads; what they share does not matter."""
    target, draft = torch.zeros(16), torch.zeros(16)
    target[:8], draft[:8] = TARGET.log() + 9, DRAFT.log() + 9
    mixed = draft.clone()
    mixed[8:] = torch.linspace(-3, 1, 8)
    mixed[8:] += draft[8:].logsumexp(0) - mixed[8:].logsumexp(0)
    names = ("kl_target_draft", "kl_draft_target", "total_variation")
    one, other = (seen(target, law)[0] for law in (draft, mixed))
    assert [one[name] for name in names] == pytest.approx([other[name] for name in names], abs=1e-5)


def test_names_of_tokens_do_not_matter():
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    place = order.argsort()
    moved = seen(TARGET.log()[order], DRAFT.log()[order], (int(place[0]), int(place[1])))
    assert moved[0] == pytest.approx(seen()[0], abs=1e-5)
    torch.testing.assert_close(moved[1], seen()[1])


def test_constants_on_logits_and_equal_laws():
    assert seen(TARGET.log() + 5, DRAFT.log() - 3)[0] == pytest.approx(seen()[0], abs=1e-5)
    equal, _ = seen(TARGET.log(), TARGET.log(), (0, 0))
    for name in ("kl_target_draft", "kl_draft_target", "total_variation", "difference_of_maxima"):
        assert equal[name] == pytest.approx(0, abs=1e-6)


def test_impossible_tokens_give_no_nan():
    target = TARGET.log().clone()
    target[3:] = -math.inf
    draft = DRAFT.log().clone()
    draft[0] = -math.inf
    found, heads = seen(target, draft)
    assert all(math.isfinite(one) for one in found.values()) and bool(heads.isfinite().all())
    assert found["draft_log_p_target"] == -20


def test_kinds_of_tokens():
    classes = TokenClasses(["7", " 7", "+", "\n", "So", "so", ""], frozenset({6}))
    names = ["digits", "punctuation", "space", "alphabetic", "special", "leading_space"]
    kinds = [[name for name, bit in zip(names, row, strict=True) if bit] for row in classes.bits]
    assert kinds == [
        *(["digits"], ["digits", "leading_space"], ["punctuation"], ["space"]),
        *(["alphabetic"], ["alphabetic"], ["special"]),
    ]
    same = classes.features(torch.tensor([0, 4, 0, 3]), torch.tensor([1, 5, 2, 6]))[:, -1]
    assert same.tolist() == [1, 1, 0, 0]


def test_a_vocabulary_too_small_is_refused():
    with pytest.raises(UnsupportedModelError, match="7 tokens"):
        distribution_features(
            torch.zeros(1, 7), torch.zeros(1, 7), torch.tensor([0]), torch.tensor([1])
        )
