"""Which tokens stay: budgets, windows, padding."""

import math
from itertools import pairwise

import pytest
import torch
from cache_methods import EVICTIONS, HALF

from effllm.modules.kvcache.eviction.base import Budget, Prefill
from effllm.modules.kvcache.eviction.methods import KeyNorm, SnapKV, StreamingLLM, Tova


def seen_of(tokens=20, window=8, valid=None, seed=0, layer=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(batch, 2, tokens, 8, generator=generator)
    values = torch.randn(batch, 2, tokens, 8, generator=generator)
    queries = torch.randn(batch, 6, min(window, tokens), 8, generator=generator)
    return Prefill(keys, values, queries, valid, 8**-0.5, layer, 2)


@pytest.mark.parametrize("method", EVICTIONS, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 7, 20])
def test_indices_are_ascending_different_and_as_many_as_the_budget(method, tokens):
    kept = [method.keep(seen_of(tokens, layer=layer)) for layer in (0, 1)]
    for one in kept:
        assert one.shape[:2] == (1, 2) and (one.diff(dim=-1) > 0).all()
        assert int(one.min()) >= 0 and int(one.max()) < tokens
    assert sum(one.shape[-1] for one in kept) == 2 * HALF.count(tokens)


def test_streaming_keeps_the_first_and_the_last():
    kept = StreamingLLM(budget=Budget(tokens=7)).keep(seen_of())
    assert kept[0, 0].tolist() == [0, 1, 2, 3, 17, 18, 19]


def test_snapkv_keeps_its_window_and_what_the_window_attends_to():
    seen = seen_of(tokens=40, window=8)
    seen.keys[0, 0, 11] = 300 * seen.queries[0, :3].mean(dim=(0, 1)) / 8
    seen.queries[0, :3] = seen.queries[0, :3].mean(dim=(0, 1))
    kept = SnapKV(budget=Budget(tokens=12), observed=8, kernel=1).keep(seen)
    assert set(range(32, 40)) <= set(kept[0, 0].tolist()) and 11 in kept[0, 0].tolist()


def test_snapkv_attention_is_causal_inside_the_window():
    weights = seen_of().attention(4)
    assert not weights[..., 0, 17:].any() and weights[..., 3, 19].all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("prompt", [30, 200, 7950])
@pytest.mark.parametrize("tokens", [10, 128, 512])
def test_pyramid_budgets_fall_with_depth_and_sum_to_those_of_snapkv(prompt, tokens):
    budget = Budget(tokens=tokens)
    pyramid = SnapKV(budget=budget, observed=8, beta=20.0)
    counts = [pyramid.count(prompt, layer, 32) for layer in range(32)]
    assert sum(counts) == 32 * budget.count(prompt)
    assert all(a - b >= -1 for a, b in pairwise(counts))  # rounding: by one
    assert min(counts) >= min(8, budget.count(prompt)) and max(counts) <= prompt
    flat = SnapKV(budget=budget, observed=8, beta=1.0)
    assert {flat.count(prompt, layer, 32) for layer in range(32)} == {budget.count(prompt)}


def test_pyramid_budgets_of_the_specification():
    pyramid = SnapKV(budget=Budget(tokens=128), observed=8, beta=20.0)
    assert pyramid.count(7950, 0, 32) == 242 and pyramid.count(7950, 31, 32) == 14


@pytest.mark.parametrize("method", EVICTIONS, ids=str)
def test_padding_goes_first(method):
    valid = torch.ones(2, 20, dtype=torch.bool)
    valid[1, :6] = False
    kept = method.keep(seen_of(valid=valid, batch=2))
    padding = int((kept[1, 0] < 6).sum())  # a budget beyond the 14 real tokens takes some
    assert padding == max(0, kept.shape[-1] - 14)
    alone = Prefill(
        *(one[1:, :, 6:] for one in (seen_of(batch=2).keys, seen_of(batch=2).values)),
        seen_of(batch=2).queries[1:], None, 8**-0.5, 0, 2,
    )  # fmt: skip
    if isinstance(method, KeyNorm | Tova | StreamingLLM):
        count = kept.shape[-1]
        same = type(method)(budget=Budget(tokens=count)).keep(alone) + 6
        assert torch.equal(kept[1:], same)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Budget(),
        lambda: Budget(share=0.5, tokens=3),
        lambda: Budget(share=0.0),
        lambda: Budget(tokens=0),
        lambda: SnapKV(budget=HALF, kernel=4),
        lambda: SnapKV(budget=HALF, beta=0.5),
    ],
)
def test_wrong_settings_are_refused_on_one_line(wrong):
    with pytest.raises(ValueError) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_a_row_of_padding_alone_attends_to_nothing():
    valid = torch.zeros(1, 20, dtype=torch.bool)
    weights = seen_of(valid=valid).attention(4)
    assert not weights.any() and not any(math.isnan(one) for one in weights.flatten().tolist())
