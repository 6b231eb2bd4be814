"""Models of all kinds on their way through a run: code of their own, mixtures of experts, ALiBi."""

import json

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from effllm.modules.errors import ConfigError, DataError, UnsupportedModelError
from effllm.modules.modeling.tiny import VOCABULARY, byte_tokenizer, tiny_model
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.commands.composing import compose, resolve
from effllm.pipelines.engine.graph import build_graph

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
EXPERTS = {"intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8}
MIXTURES = {
    "mixtral": transformers.MixtralConfig(**SIZES, **EXPERTS, num_local_experts=2),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **SIZES, **EXPERTS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    byte_tokenizer().save_pretrained(folder)
    return folder


def pipeline(folder, *overrides):
    """Import, text, windows, pruning with Wanda, and perplexity at smoke scale."""
    model = ["model=hf", "model.name=m", f"model.path={folder}"]
    whole, _ = resolve(compose(["paper=sds", "scale=smoke", *model, *overrides]))
    kept = ("base", "calibration_text", "calibration", "test_text", "test")
    prune = whole["wanda_half"]["prune"]
    return {name: whole[name] for name in kept} | {"prune": prune}


def opened(store, graph, name):
    instance = next(one for one in graph if one.name == name)
    found = store.open(instance.stage, instance.digest, Checkpoint)
    assert isinstance(found, Checkpoint)
    return found


def test_code_that_was_trusted_is_trusted_for_the_whole_run(folder, execute, store, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    tiny_model("llama").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "ownllama", "architectures": ["OwnLlama"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnLlama",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'ownllama'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class OwnLlama(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(DataError, match=r"model\.trust_remote_code=true"):
        build_graph(pipeline(folder), store)
    trusted = pipeline(folder, "model.trust_remote_code=true")
    assert set(execute(trusted).values()) == {"ran"}
    pruned = opened(store, build_graph(trusted, store), "prune")
    assert pruned.trusts_code
    assert type(pruned.load_model("float32")).__name__ == "OwnLlama"
    assert len(pruned.load_tokenizer()) == VOCABULARY


@pytest.mark.parametrize("config", MIXTURES.values(), ids=MIXTURES.keys())
def test_a_mixture_of_experts_is_imported_and_decoded_but_not_pruned(
    config, folder, execute, store
):
    from effllm.modules.decoding.proposers.lookup import PromptLookup
    from effllm.modules.decoding.session import Session
    from effllm.modules.decoding.verifiers.exact import Exact
    from effllm.modules.inference.runner import ModelRunner

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    graph = pipeline(folder)
    with pytest.raises(UnsupportedModelError, match="^prune: .*no linear layers.*dense decoder"):
        execute(graph)
    base = opened(store, build_graph(graph, store), "base")
    assert base.manifest["metrics"]["prunable_parameters"] is None
    assert base.manifest["metrics"]["blocks"] == 2
    model = base.load_model("float32")
    prompt = [5, 6, 7, 5, 6, 7, 5, 6]
    wanted = model.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    session = Session(ModelRunner(model), PromptLookup(), Exact(), frozenset())
    assert session.generate(prompt, 12).tokens == wanted[0, len(prompt) :].tolist()


def test_bloom_is_pruned_in_any_micro_batch(folder, execute, store):
    config = transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1,
        eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    assert set(execute(pipeline(folder)).values()) == {"ran"}


@pytest.mark.parametrize("key", ["max_position_embeddings", "n_positions", "max_seq_len"])
def test_windows_longer_than_the_context_are_refused(key, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({key: 512}))
    checkpoint = Checkpoint(tmp_path, {"stage": "import_model", "digest": "0" * 64})
    checkpoint.require_context(512, "sequence_length")
    with pytest.raises(ConfigError, match="513 tokens are more than the model's context of 512"):
        checkpoint.require_context(513, "sequence_length")
