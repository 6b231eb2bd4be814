"""Folded query heads against transformers' own attention."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from effllm.modules.inference import attention
from effllm.modules.inference.attention import GROUPED, group_queries
from effllm.modules.inference.runner import ModelRunner


def _model(heads: int, shared: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=shared,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (6, 1), (3, 3)])
def test_folded_heads_give_the_logits_of_a_whole_forward(heads, shared, monkeypatch):
    """One token, a chain and a tree behind a cached prefix."""
    model = _model(heads, shared)
    ids = torch.randint(64, (1, 21), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids).logits[0]
    calls = []
    own = attention.F.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F,
        "scaled_dot_product_attention",
        lambda query, *args, **kwargs: calls.append(query.shape) or own(query, *args, **kwargs),
    )
    runner = ModelRunner(model)
    assert model.config._attn_implementation == GROUPED
    tokens = ids[0].tolist()
    runner.advance(tokens[:15], rows=1)
    folded = [shape for shape in calls if shape[1] != heads]
    assert not folded, "a prefill is not folded"
    torch.testing.assert_close(runner.advance(tokens[15:16])[0], whole[15], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(runner.advance(tokens[16:21]), whole[16:21], atol=1e-5, rtol=1e-5)
    if heads != shared:
        groups = heads // shared
        assert (1, shared, groups, 48 // heads) in calls
        assert (1, shared, 5 * groups, 48 // heads) in calls
    runner.rollback_to(15)
    tree = [tokens[15], 7, tokens[16], tokens[17]]  # 15 -> {7, 16 -> 17}
    logits = runner.advance(tree, parents=[-1, 0, 0, 2])
    torch.testing.assert_close(logits[[0, 2, 3]], whole[15:18], atol=1e-5, rtol=1e-5)


def test_other_implementations_are_left_alone():
    """A user who asked for eager attention keeps it."""
    model = _model(4, 2)
    model.set_attn_implementation("eager")
    group_queries(model)
    assert model.config._attn_implementation == "eager"
