import math

import numpy as np
import pytest
import torch

from effllm.modules.errors import UnsupportedModelError
from effllm.modules.evaluation.intervals import Interval, estimate, share
from effllm.modules.evaluation.layers import compare_layer, weight_histogram
from effllm.modules.evaluation.perplexity import perplexity, window_nll
from effllm.modules.modeling.tiny import VOCABULARY, tiny_model


class ThreeTokens(torch.nn.Module):
    """Always predicts (1/2, 1/4, 1/4) over three tokens."""

    device = torch.device("cpu")

    def forward(self, input_ids, use_cache=False):
        logits = torch.log(torch.tensor([0.5, 0.25, 0.25])).expand(*input_ids.shape, 3)
        return type("Output", (), {"logits": logits})()


def test_perplexity_by_hand():
    # Two predictions per window: tokens 0 and 1, then 2 and 2.
    windows = torch.tensor([[2, 0, 1], [0, 2, 2]])
    nll = window_nll(ThreeTokens(), windows, batch_size=2)
    assert nll.tolist() == pytest.approx([math.log(8) / 2, math.log(4)])
    assert perplexity(nll) == pytest.approx(2 ** ((1.5 + 2) / 2))
    assert perplexity(torch.tensor([1e5])) == math.inf


def test_perplexity_equals_the_models_own_loss_whatever_the_batch(any_model, generator):
    windows = torch.randint(3, VOCABULARY, (5, 16), generator=generator)
    with torch.no_grad():
        expected = [float(any_model(row[None], labels=row[None]).loss) for row in windows]
    for batch_size in (1, 3):
        nll = window_nll(any_model, windows, batch_size=batch_size)
        assert nll.tolist() == pytest.approx(expected, rel=1e-5)


def covered(sample, *, trials, transform=lambda means: means, truth=0.0):
    """Trials in which the interval holds the truth."""
    found = [estimate(sample(), transform=transform, resamples=1000) for _ in range(trials)]
    return sum(one.low <= truth <= one.high for one in found)


@pytest.mark.parametrize("count", [5, 8, 13, 29, 40])
def test_intervals_of_normal_means_cover_as_often_as_they_say(count):
    """Statistic: covered of 1000 samples. A true coverage of 95 % leaves 932 to 968 in 1 %.

    From 30 examples on a bootstrap's percentiles cover a little less: 93.9 % of 40, so that the
    lower bound is 925 there. Percentiles below 30 would have 828 of 5, 893 of 8, 909 of 13.
    """
    random = np.random.default_rng(count)
    found = covered(lambda: random.normal(0.0, 2.0, count), trials=1000)
    assert (932 if count < 30 else 925) <= found <= 968


@pytest.mark.parametrize("count", [5, 12, 29])
def test_intervals_of_ratios_cover_nearly_as_often_as_they_say(count):
    """Statistic: covered of 1000 samples of paired, skewed times, 95 % said.

    Their skew costs Student's t some points: a true coverage of 93 to 95 % leaves 908 to 968 in
    1 %. Percentiles would have 827 of 5, 888 of 12.
    """
    random = np.random.default_rng(count)

    def pairs():
        times = random.lognormal(0.0, 0.5, count)
        return np.stack([times, 1.5 * times * random.lognormal(-0.045, 0.3, count)], axis=1)

    found = covered(pairs, trials=1000, transform=lambda m: m[..., 1] / m[..., 0], truth=1.5)
    assert 908 <= found <= 968


def test_too_few_examples_have_no_interval():
    for values, clusters in ((np.arange(4.0), None), (np.arange(40.0), [n % 4 for n in range(40)])):
        found = estimate(values, clusters=clusters)
        assert found.value == values.mean() and not found.known and found.ends is None
    assert estimate(np.arange(5.0)).known


def test_few_examples_have_students_interval_by_hand():
    """1 to 5: mean 3, standard error sqrt(2.5 / 5), t(4) = 2.776."""
    found = estimate(np.arange(1.0, 6.0))
    half = 2.7764451 * math.sqrt(0.5)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))
    as_perplexity = estimate(np.arange(1.0, 6.0), transform=np.exp)
    assert as_perplexity.ends == pytest.approx([math.exp(3 - half), math.exp(3 + half)])
    assert estimate(np.arange(1.0, 6.0), bounds=(2.0, 3.5)).ends == [2.0, 3.5]


def test_intervals_can_be_turned_and_moved():
    found = Interval(2.0, 1.0, 4.0)
    assert 3 - found == Interval(1.0, -1.0, 2.0) and found - 1 == Interval(1.0, 0.0, 3.0)


def test_shares_have_exact_one_sided_bounds():
    """None of n: 1 - 0.05 ** (1 / n); all of n: 0.05 ** (1 / n)."""
    assert share(0, 60).ends == pytest.approx([0, 1 - 0.05 ** (1 / 60)])
    assert share(0, 299).high < 0.01 < share(0, 298).high
    assert share(20, 20).ends == pytest.approx([0.05 ** (1 / 20), 1])
    assert not share(0, 4).known


def test_examples_of_one_document_are_drawn_together():
    """Copies of a document add no evidence; documents of one example each change nothing."""
    for count in (12, 40):  # Student's t, bootstrap
        values = np.random.default_rng(0).normal(1.0, 2.0, count)
        alone = estimate(values)
        assert estimate(values, clusters=[f"d{number}" for number in range(count)]) == alone
        copied = np.repeat(values, 4)
        together = estimate(copied, clusters=np.repeat(np.arange(count), 4).tolist())
        assert (together.value, together.low, together.high) == pytest.approx(
            (alone.value, alone.low, alone.high)
        )
        apart = estimate(copied)
        assert apart.high - apart.low < 0.6 * (alone.high - alone.low)  # half, as if new


def test_a_long_document_weighs_as_many_examples_as_it_has():
    """Five documents by hand: one of three windows at 1, four of one at 5; the mean is 23 / 7.

    Without the long one the mean is 5, without a short one 3: the jackknife's error is
    sqrt(4 / 5 * (1.6^2 + 4 * 0.4^2)), Student's t with 4 degrees of freedom 2.776.
    """
    windows, documents = np.array([1.0, 5.0, 1.0, 1.0, 5.0, 5.0, 5.0]), ["a", *"baacde"]
    found = estimate(windows, clusters=documents)
    half = 2.7764451 * math.sqrt(0.8 * (1.6**2 + 4 * 0.4**2))
    assert (found.value, *found.ends) == pytest.approx((23 / 7, 23 / 7 - half, 23 / 7 + half))
    pairs = np.stack([windows, np.zeros(7)], axis=1)
    change = estimate(pairs, clusters=documents, transform=lambda m: m[..., 0] - m[..., 1])
    assert change == found


def test_paired_differences_are_tighter_than_unpaired_ones():
    random = np.random.default_rng(1)
    difficulty = random.normal(3, 1, 30)
    better = difficulty - 0.05 + random.normal(0, 0.01, 30)
    found = estimate(better - difficulty)
    assert found.high < 0
    one, other = estimate(better), estimate(difficulty)
    assert one.high > other.low  # the separate intervals overlap widely
    assert found.value == pytest.approx(one.value - other.value)
    as_perplexity = estimate(better, transform=np.exp)
    assert as_perplexity.value == pytest.approx(math.exp(one.value))


@pytest.mark.parametrize("count", [20, 40])
def test_arms_are_resampled_together(count):
    arms = np.stack([np.arange(count), np.arange(count) + 1.0], axis=1)
    found = estimate(arms, transform=lambda means: means[..., 1] - means[..., 0])
    assert (found.low, found.value, found.high) == pytest.approx((1, 1, 1))


def test_layer_comparison(generator):
    weight, gram = torch.randn(6, 8, generator=generator), torch.eye(8)
    changed = weight * (torch.arange(8) < 4)
    found = compare_layer(weight, changed, gram)
    share = float(weight[:, 4:].square().sum() / weight.square().sum())
    assert found.error == pytest.approx(share, rel=1e-5)
    assert found.sparsity == 0.5 and found.near_zero >= 0.5
    assert sum(weight_histogram(weight, limit=100.0, bins=7)) == 48


def requests(tokenizer, pairs):
    return [((a, b), tokenizer(a)["input_ids"], tokenizer(b)["input_ids"]) for a, b in pairs]


PAIRS = [
    ("The river crosses", " the bridge"),
    ("The river crosses", " a town"),
    ("The river crosses", " x"),
    ("A", " teacher remembers the old city"),
    ("Our garden follows the engine and the sailor", " now"),
]


def test_branching_gives_the_numbers_of_the_harness(any_family, tokenizer):
    from lm_eval.models.huggingface import HFLM

    from effllm.modules.evaluation.harness import BranchingLM

    model = tiny_model(any_family)
    common = {"pretrained": model, "tokenizer": tokenizer, "max_length": 64}
    plain = HFLM(**common, batch_size=1)._loglikelihood_tokens(
        requests(tokenizer, PAIRS), disable_tqdm=True
    )
    adapter = BranchingLM(**common, batch_size=2)
    assert adapter.shares_prefixes == (any_family not in ("mistral", "qwen3"))  # sliding windows
    ours = adapter._loglikelihood_tokens(requests(tokenizer, PAIRS), disable_tqdm=True)
    for (expected, greedy), (found, same) in zip(plain, ours, strict=True):
        assert found == pytest.approx(expected, rel=1e-4) and greedy == same


def test_long_contexts_are_cut_from_the_left_as_the_harness_does(tokenizer, tiny_llama):
    from lm_eval.models.huggingface import HFLM

    from effllm.modules.evaluation.harness import BranchingLM

    common = {"pretrained": tiny_llama, "tokenizer": tokenizer, "max_length": 16}
    pairs = requests(tokenizer, [("a long context that does not fit", " end")])
    plain = HFLM(**common, batch_size=1)._loglikelihood_tokens(pairs, disable_tqdm=True)
    ours = BranchingLM(**common, batch_size=1)._loglikelihood_tokens(pairs)
    assert ours[0][0] == pytest.approx(plain[0][0], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_ignores_the_mask_is_refused(tokenizer, tiny_llama, dtype):
    from effllm.modules.evaluation.harness import BranchingLM

    tiny_llama = tiny_llama.to(dtype)
    BranchingLM(pretrained=tiny_llama, tokenizer=tokenizer, batch_size=1, max_length=64)
    inner = tiny_llama.model.forward
    tiny_llama.model.forward = lambda *args, **kwargs: inner(
        *args, **{**kwargs, "attention_mask": None}
    )
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM: branch masks change"):
        BranchingLM(pretrained=tiny_llama, tokenizer=tokenizer, batch_size=1, max_length=64)


def test_an_interval_over_seeds_is_students():
    from effllm.modules.evaluation.intervals import over_seeds

    found = over_seeds(np.array([1.0, 2.0, 3.0]))
    assert found.value == 2 and found.high - found.value == pytest.approx(4.302653 / 3**0.5)
    with pytest.raises(ValueError, match="two seeds"):
        over_seeds(np.array([1.0]))
