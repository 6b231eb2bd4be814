"""Expected attention: its law against draws, its rotation against the model's own; sinks."""

import math

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from effllm.modules.kvcache.agreement import read_prompt
from effllm.modules.kvcache.eviction.base import Budget, Prefill
from effllm.modules.kvcache.eviction.expected_attention import ExpectedAttention, rotated
from effllm.modules.modeling.tiny import tiny_model

HALF = Budget(share=0.5)


def prefill(queries, keys, rotation=None, valid=None):
    values = torch.ones_like(keys)
    return Prefill(keys, values, queries, valid, keys.shape[-1] ** -0.5, 0, 2, rotation)


def test_the_expectation_is_that_of_draws_from_the_law(generator):
    keys = torch.randn(1, 2, 40, 4, generator=generator)
    offset = torch.randn(1, 4, 1, 4, generator=generator)
    seen = prefill(offset + torch.randn(1, 4, 40, 4, generator=generator), keys)
    method = ExpectedAttention(budget=HALF)
    mean, spread = method.query_law(seen)
    own = seen.queries[:, :, 4:]  # queries of the first tokens are left out
    torch.testing.assert_close(mean, own.mean(dim=2))
    torch.testing.assert_close(spread[0, 1], own[0, 1].T.cov(correction=0))
    root = torch.linalg.cholesky(spread[0])
    noise = torch.randn(4, 200_000, 4, generator=generator)
    drawn = mean[0][:, None] + noise @ root.mT  # (H, N, D)
    scores = drawn.reshape(2, 2, -1, 4) @ keys[0].unsqueeze(1).mT * 0.5
    weight = scores.exp().mean(dim=2)[..., 4:]  # sinks take no part
    expected = (weight / weight.sum(dim=-1, keepdim=True)).mean(dim=1)
    found = method.expected(seen)[0]
    torch.testing.assert_close(found[:, 4:], expected, rtol=0.05, atol=1e-4)
    assert not found[:, :4].any()


def test_queries_are_turned_back_and_ahead_as_the_model_turns_them(generator):
    model = tiny_model("llama")
    turn = LlamaRotaryEmbedding(model.config)
    size = model.config.hidden_size // model.config.num_attention_heads
    plain = torch.randn(1, 4, 30, size, generator=generator)
    cosine, sine = turn(plain, torch.arange(30)[None])
    queries, keys = apply_rotary_pos_emb(plain, plain[:, :2], cosine, sine)
    method = ExpectedAttention(budget=HALF, sinks=0, future=7)
    seen = prefill(queries, keys, torch.stack([cosine, sine], dim=1))
    mean, spread = method.query_law(seen)
    ahead = turn(plain, torch.arange(30, 37)[None])
    unit = torch.eye(size).reshape(1, 1, size, 1, size).expand(1, 1, size, 7, size)
    turned = [apply_rotary_pos_emb(one, one, *ahead)[0] for one in unit.unbind(dim=2)]
    matrix = torch.stack([one[0, 0].mean(dim=0) for one in turned], dim=1)
    torch.testing.assert_close(mean[0, 3], matrix @ plain[0, 3].mean(dim=0), atol=1e-5, rtol=1e-4)
    within = plain[0, 3].T.cov(correction=0)
    torch.testing.assert_close(spread[0, 3], matrix @ within @ matrix.T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
def test_the_cache_remembers_how_queries_were_rotated(family):
    model = tiny_model(family)
    projection = next(one for name, one in model.named_modules() if name.endswith("q_proj"))
    plain = []
    handle = projection.register_forward_hook(lambda module, given, output: plain.append(output))
    layer = read_prompt(model, torch.arange(20)[None], observed=100).compressible[0]
    handle.remove()
    if family == "opt":  # positions are added to the input there
        assert layer.rotation is None
        return
    cosine, sine = layer.rotation[:, None].unbind(dim=2)
    back = rotated(layer.queries, cosine, -sine)
    torch.testing.assert_close(back.transpose(1, 2).flatten(2), plain[0], atol=1e-5, rtol=1e-4)


def test_first_tokens_stay_and_values_count(generator):
    keys = torch.randn(1, 2, 20, 8, generator=generator)
    seen = prefill(torch.randn(1, 6, 20, 8, generator=generator), keys)
    seen.values[:, :, 11] = 1e6
    kept = ExpectedAttention(budget=Budget(tokens=5)).keep(seen)
    assert kept[0].tolist() == [[0, 1, 2, 3, 11]] * 2
    tight = ExpectedAttention(budget=Budget(tokens=2)).keep(seen)
    assert tight[0].tolist() == [[0, 1]] * 2


def test_other_pairs_of_channels_are_refused():
    angles = torch.tensor([0.1, 0.1, 0.2, 0.2])
    with pytest.raises(ValueError, match="pairs others"):
        rotated(torch.ones(3, 4), angles.cos(), angles.sin())
    with pytest.raises(ValueError, match="1 or more positions"):
        ExpectedAttention(budget=HALF, future=0)


def angles_of(tokens, channels):
    """(W, R / 2) angles as Llama has them."""
    rates = 10_000.0 ** -(torch.arange(0, channels, 2) / channels)
    return torch.arange(tokens)[:, None] * rates


def turned(channels, tokens=40, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 1, 2, tokens, channels, generator=generator)
    queries = torch.randn(1, 4, tokens, channels, generator=generator)
    angles = angles_of(tokens, channels)
    angles = torch.cat([angles, angles], dim=-1)
    turn = torch.stack([angles.cos(), angles.sin()])[None].to(dtype)
    return Prefill(keys, values, queries, None, channels**-0.5, 0, 2, turn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [*range(8, 257, 8), 6, 50, 100])
def test_every_head_size_is_understood(channels, dtype):
    seen = turned(channels, dtype=dtype)
    score = ExpectedAttention(budget=HALF).expected(seen)
    assert bool(score.isfinite().all()) and score.shape == (1, 2, 40)


@pytest.mark.parametrize("channels", [40, 48, 64])
def test_the_law_of_queries_is_that_of_every_next_position(channels):
    """One fixed query, turned to each of the next positions in float64, and averaged."""
    seen = turned(channels, tokens=12)
    fixed = torch.randn(4, channels, generator=torch.Generator().manual_seed(1)).double()
    angles = angles_of(12 + 20, channels).double()

    def at(position):
        turn = angles[position].repeat(2)
        return rotated(fixed, turn.cos(), turn.sin())

    queries = torch.stack([at(position) for position in range(12)], dim=1)[None].float()
    seen = Prefill(seen.keys, seen.values, queries, None, 1.0, 0, 2, seen.rotation)
    mean, spread = ExpectedAttention(budget=HALF, future=20).query_law(seen)
    truth = torch.stack([at(position) for position in range(12, 32)]).mean(dim=0)
    torch.testing.assert_close(mean[0].double(), truth, rtol=1e-4, atol=1e-4)
    assert float(spread.abs().max()) < 1e-5


def test_sinks_stay_and_take_no_attention_from_others():
    """A sink that would get nearly all attention leaves the others' scores as they are."""
    method = ExpectedAttention(budget=Budget(tokens=12))
    seen = turned(16)
    plain = method.expected(seen)
    assert not plain[..., :4].any()
    torch.testing.assert_close(plain[..., 4:].sum(dim=-1), torch.ones(1, 2))
    seen.keys[:, :, 0] *= 100
    torch.testing.assert_close(method.expected(seen), plain)
    assert set(range(4)) <= set(method.keep(seen)[0, 0].tolist())


def test_the_score_is_the_softmax_of_the_authors_formula():
    """By loops, in float64: softmax over what is no sink, mean over the heads of a group."""
    method = ExpectedAttention(budget=HALF)
    seen = turned(8, tokens=14)
    mean, spread = (one.double() for one in method.query_law(seen))
    found = torch.zeros(2, 10, dtype=torch.float64)
    for head in range(4):
        keys = seen.keys[0, head // 2, 4:].double()
        scores = [
            key @ mean[0, head] / math.sqrt(8) + key @ spread[0, head] @ key / 8 / 2 for key in keys
        ]
        found[head // 2] += torch.stack(scores).softmax(dim=0) / 2
    torch.testing.assert_close(
        method.expected(seen)[0, :, 4:].double(), found, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("tokens", [1, 3, 4])
def test_prompts_of_sinks_alone_keep_them(tokens):
    kept = ExpectedAttention(budget=Budget(tokens=2)).keep(turned(8, tokens=tokens))
    assert kept[0, 0].tolist() == [0, 1][: min(2, tokens)]


def test_sinks_begin_after_padding():
    seen = turned(16)
    valid = torch.ones(1, 40, dtype=torch.bool)
    valid[:, :6] = False
    padded = Prefill(seen.keys, seen.values, seen.queries, valid, seen.scaling, 0, 2, seen.rotation)
    score = ExpectedAttention(budget=HALF).expected(padded)
    assert not score[..., :10].any() and bool((score[..., 10:] > 0).all())
