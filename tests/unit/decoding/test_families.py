"""Every way to decode on many families: the text of transformers' generate, or one line."""

import pytest
import torch
from families import CONFIGS, family_model

from effllm.modules.decoding.drafts import first_layers
from effllm.modules.decoding.proposers.base import Nothing
from effllm.modules.decoding.proposers.draft import DraftModel
from effllm.modules.decoding.proposers.draft_tree import DraftTree
from effllm.modules.decoding.proposers.lookup import PromptLookup
from effllm.modules.decoding.session import Session
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.decoding.verifiers.fly import Fly
from effllm.modules.errors import ConfigError, UnsupportedModelError
from effllm.modules.inference.runner import ModelRunner

NO_TREES = {
    "bloom": "BloomForCausalLM: positions cannot be given to it",
    "mpt": "MptForCausalLM: positions cannot be given to it",
    "falcon, alibi": "FalconForCausalLM: positions cannot be given to it",
    "gpt_neo": "GPTNeoForCausalLM: its local layers count places",
}
REFUSED = {"gpt": "keep a cache of their own", "mamba": "cannot be rolled back"}
PROMPT = torch.randint(3, 259, (12,), generator=torch.Generator().manual_seed(5)).tolist() * 2


def noisy(name):
    """The target with noise, so that a tree's first guess is sometimes not the right one."""
    model, generator = family_model(name), torch.Generator().manual_seed(1)
    for value in model.parameters():
        value.data += (
            0.05 * value.data.std().nan_to_num() * torch.randn(value.shape, generator=generator)
        )
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_all_ways_to_decode_write_the_text_of_generate(name):
    """Windows of 16 tokens are far behind the end of the text."""
    model = family_model(name)
    if name in REFUSED:
        for refused in (ModelRunner, lambda one: first_layers(one, 1)):
            with pytest.raises(UnsupportedModelError, match=REFUSED[name]):
                refused(model)
        return
    ids = torch.tensor([PROMPT])
    options = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    proposers = [Nothing(), PromptLookup(), DraftModel(ModelRunner(first_layers(model, 1)), 259)]
    tree = DraftTree(ModelRunner(noisy(name)), 259, (3, 2))
    if name in NO_TREES:
        with pytest.raises(UnsupportedModelError, match=NO_TREES[name]):
            Session(ModelRunner(model), tree, Exact())
        with pytest.raises(UnsupportedModelError, match=NO_TREES[name]):
            ModelRunner(model).advance([5, 6], parents=[-1, -1])
    else:
        proposers.append(tree)
    for proposer in proposers:
        found = Session(ModelRunner(model), proposer, Exact()).generate(PROMPT, 16)
        assert found.tokens == expected[0, len(PROMPT) :].tolist(), type(proposer).__name__


def test_rules_for_chains_refuse_trees_before_anything_is_decoded():
    runner = ModelRunner(family_model("llama"))
    with pytest.raises(ConfigError, match="Fly judges chains only"):
        Session(runner, DraftTree(runner, 259), Fly())
