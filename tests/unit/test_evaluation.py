import math

import numpy as np
import pytest
import torch

from effllm.modules.errors import UnsupportedModelError
from effllm.modules.evaluation.intervals import bootstrap
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


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    """95 % intervals over 200 normal samples of 40: between 88 % and 98 % (p < 0.001 outside)."""
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        found = bootstrap(random.normal(1.0, 2.0, 40), resamples=1000, seed=trial)
        covered += found.low <= 1.0 <= found.high
    assert 176 <= covered <= 196


def test_examples_of_one_document_are_drawn_together():
    """Copies of a document add no evidence; documents of one example each change nothing."""
    values = np.random.default_rng(0).normal(1.0, 2.0, 12)
    alone = bootstrap(values)
    assert bootstrap(values, clusters=[f"d{number}" for number in range(12)]) == alone
    copied = np.repeat(values, 4)
    together = bootstrap(copied, clusters=np.repeat(np.arange(12), 4).tolist())
    assert (together.value, together.low, together.high) == pytest.approx(
        (alone.value, alone.low, alone.high)
    )
    apart = bootstrap(copied)
    assert apart.high - apart.low < 0.6 * (alone.high - alone.low)  # half, as if they were new


def test_a_long_document_weighs_as_many_examples_as_it_has():
    """By hand: two documents, three windows of 1 and one of 5; the draws are AA, AB, BB."""
    windows, documents = np.array([1.0, 5.0, 1.0, 1.0]), ["a", "b", "a", "a"]
    found = bootstrap(windows, clusters=documents)
    assert (found.low, found.value, found.high) == (1.0, 2.0, 5.0)
    middle = bootstrap(windows, clusters=documents, level=0.2)  # half of the draws are AB
    assert middle.low == middle.high == 2.0
    pairs = np.stack([windows, np.zeros(4)], axis=1)
    change = bootstrap(pairs, clusters=documents, transform=lambda m: m[..., 0] - m[..., 1])
    assert change == found


def test_paired_differences_are_tighter_than_unpaired_ones():
    random = np.random.default_rng(1)
    difficulty = random.normal(3, 1, 30)
    better = difficulty - 0.05 + random.normal(0, 0.01, 30)
    found = bootstrap(better - difficulty)
    assert found.high < 0
    one, other = bootstrap(better), bootstrap(difficulty)
    assert one.high > other.low  # the separate intervals overlap widely
    assert found.value == pytest.approx(one.value - other.value)
    as_perplexity = bootstrap(better, transform=np.exp)
    assert as_perplexity.value == pytest.approx(math.exp(one.value))


def test_arms_are_resampled_together():
    arms = np.stack([np.arange(20.0), np.arange(20.0) + 1], axis=1)
    found = bootstrap(arms, transform=lambda means: means[..., 1] - means[..., 0])
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
