"""Models that come in: whole and sound, or refused in one line that names cause and remedy."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, T5Config

from effllm.modules.errors import ConfigError, DataError
from effllm.modules.modeling.checkpoints import load_any
from effllm.modules.modeling.sources import PretrainedFolder, TinyRandom
from effllm.modules.modeling.tiny import byte_tokenizer, tiny_config, tiny_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 1234\n"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A tiny model as transformers saves it."""
    folder = tmp_path_factory.mktemp("sound")
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    """A copy of it to break."""
    return shutil.copytree(sound, tmp_path / "model")


def source(folder, **changes):
    return PretrainedFolder(name="m", path=str(folder), **changes)


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def shards(folder, *missing):
    """The weights in two files and an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in parts.items():
        if file not in missing:
            save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: file for file, part in parts.items() for name in part},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut(file, length):
    file.write_bytes(file.read_bytes()[:length])


def pickled(folder, *, keep=False):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    if not keep:
        (folder / WEIGHTS).unlink()


def remove(folder, *names):
    for name in names:
        (folder / name).unlink()


def quantised(**settings):
    return lambda folder: change_config(folder, quantization_config=settings)


def own_code(folder, kind="myllama"):
    change_config(
        folder,
        model_type=kind,
        architectures=["MyLlama"],
        auto_map={
            "AutoConfig": "configuration_my.MyConfig",
            "AutoModelForCausalLM": "modeling_my.MyLlama",
        },
    )
    (folder / "configuration_my.py").write_text(
        "from transformers import LlamaConfig\n"
        f"class MyConfig(LlamaConfig):\n    model_type = {kind!r}\n"
    )
    (folder / "modeling_my.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_my import MyConfig\n"
        "class MyLlama(LlamaForCausalLM):\n    config_class = MyConfig\n"
    )


# What a look at the files tells: (how the folder is broken, what the message says).
SEEN = {
    "weights are a pointer": (
        lambda f: (f / WEIGHTS).write_text(POINTER),
        r"model\.safetensors is a git-lfs pointer.*git lfs pull",
    ),
    "tokenizer is a pointer": (
        lambda f: (f / "tokenizer.json").write_text(POINTER),
        r"tokenizer\.json is a git-lfs pointer",
    ),
    "config is a pointer": (
        lambda f: (f / "config.json").write_text(POINTER),
        r"config\.json is a git-lfs pointer",
    ),
    "pickle is a pointer": (
        lambda f: (remove(f, WEIGHTS), (f / "pytorch_model.bin").write_text(POINTER)),
        "pickles only",
    ),
    "cut off in the data": (
        lambda f: cut(f / WEIGHTS, 20_000),
        r"model\.safetensors is cut off: 20,000 bytes, its header says",
    ),
    "cut off by one byte": (lambda f: cut(f / WEIGHTS, -1), "is cut off"),
    "cut off in the header": (lambda f: cut(f / WEIGHTS, 100), "is cut off.*its header alone"),
    "empty": (lambda f: cut(f / WEIGHTS, 0), "is no safetensors file"),
    "a web page": (
        lambda f: (f / WEIGHTS).write_text("<!DOCTYPE html><html>Log in</html>"),
        "is no safetensors file .*<!DOCTYP",
    ),
    "bytes after the end": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"more"),
        "is damaged",
    ),
    "a header of rubbish": (
        lambda f: (f / WEIGHTS).write_bytes((5).to_bytes(8, "little") + b"[1,2]"),
        "header cannot be read",
    ),
    "a header of other things": (
        lambda f: (f / WEIGHTS).write_bytes(
            (31).to_bytes(8, "little") + b'{"a": {"data_offsets": [0, 0]}}'
        ),
        "header cannot be read",
    ),
    "no tensors": (
        lambda f: (f / WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"{}"),
        "hold no tensor",
    ),
    "a shard is missing": (
        lambda f: shards(f, "b.safetensors"),
        r"1 of 2 weight files .* are missing \(b\.safetensors\); the download is not complete",
    ),
    "a shard is cut off": (
        lambda f: (shards(f), cut(f / "b.safetensors", -1)),
        r"b\.safetensors is cut off",
    ),
    "the index is none": (
        lambda f: (remove(f, WEIGHTS), (f / "model.safetensors.index.json").write_text("[]")),
        "is no index of weights",
    ),
    "gptq": (quantised(quant_method="gptq", bits=4), r"quantised \(gptq\).*quantised from"),
    "awq": (quantised(quant_method="awq", bits=4), r"quantised \(awq\)"),
    "bitsandbytes": (
        quantised(quant_method="bitsandbytes", load_in_4bit=True),
        r"quantised \(bitsandbytes\)",
    ),
    "without a method": (quantised(load_in_8bit=True), "are quantised"),
    "8-bit floats": (
        lambda f: change_weights(
            f, lambda t: t.update({k: v.to(torch.float8_e4m3fn) for k, v in t.items()})
        ),
        "quantised .* is F8_E4M3",
    ),
    "whole numbers": (
        lambda f: change_weights(
            f, lambda t: t.update({k: v.to(torch.int8) for k, v in t.items()})
        ),
        "quantised .* is I8",
    ),
    "an adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        "is an adapter .*merge it",
    ),
    "an adapter beside its base": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "is an adapter .*merge it",
    ),
    "no configuration": (lambda f: remove(f, "config.json"), "has no config.json"),
    "gguf": (
        lambda f: (remove(f, "config.json"), (f / "m.Q4_0.gguf").touch()),
        r"m\.Q4_0\.gguf is GGUF",
    ),
    "no weights": (lambda f: remove(f, WEIGHTS), r"has no weights: expected model\.safetensors"),
    "pickles only": (pickled, r"pickles only \(pytorch_model.bin\); model.safetensors_only=false"),
    "no tokenizer": (
        lambda f: remove(f, "tokenizer.json", "tokenizer_config.json"),
        "has no tokenizer",
    ),
    "broken configuration": (
        lambda f: (f / "config.json").write_text('{"model_type": "llama"'),
        "config.json is broken JSON",
    ),
    "configuration in latin-1": (
        lambda f: (f / "config.json").write_bytes(b'{"a": "\xe9"}'),
        "config.json is broken JSON",
    ),
    "configuration is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "config.json holds list, expected a JSON object",
    ),
    "broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "tokenizer.json is broken JSON",
    ),
    "no model type": (lambda f: change_config(f, model_type=None), "names no model_type"),
    "encoder-decoder": (
        lambda f: (f / "config.json").write_text(T5Config().to_json_string()),
        "encoder-decoder model",
    ),
    "a classifier": (
        lambda f: change_config(f, architectures=["LlamaForSequenceClassification"]),
        "LlamaForSequenceClassification is no causal language model",
    ),
    "an encoder": (
        lambda f: (f / "config.json").write_text(
            BertConfig(architectures=["BertForMaskedLM"]).to_json_string()
        ),
        "BertForMaskedLM is no causal language model",
    ),
    "its own code": (own_code, r"its own code; model\.trust_remote_code=true"),
    "heads do not divide the width": (
        lambda f: change_config(f, num_attention_heads=5, num_key_value_heads=5, head_dim=None),
        "hidden_size=64 does not divide into num_attention_heads=5",
    ),
    "heads do not divide": (
        lambda f: change_config(f, num_attention_heads=3),
        "num_attention_heads=3 does not divide into num_key_value_heads=2",
    ),
    "a negative size": (
        lambda f: change_config(f, intermediate_size=-128),
        "intermediate_size is -128, expected a whole number above 0",
    ),
    "no layers": (lambda f: change_config(f, num_hidden_layers=0), "num_hidden_layers is 0"),
    "a size in words": (
        lambda f: change_config(f, hidden_size="64"),
        "hidden_size is '64', expected a whole number",
    ),
    "layers without end": (
        lambda f: change_config(f, num_hidden_layers=10**9),
        "num_hidden_layers=1000000000, but there are only 20 weights",
    ),
    "a width that no weight has": (
        lambda f: change_config(f, hidden_size=10**9),
        "hidden_size=1000000000, but no weight has this size",
    ),
    "another vocabulary": (
        lambda f: change_config(f, vocab_size=300),
        "vocab_size=300, but no weight has this size",
    ),
    "an unknown dtype": (
        lambda f: change_config(f, dtype="bfloat17"),
        "dtype is 'bfloat17', expected one of float32",
    ),
}

# What only shows when the weights are read.
FOUND = {
    "a weight is missing": (
        lambda f: change_weights(f, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")),
        r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\)",
    ),
    "a weight too many": (
        lambda f: change_weights(f, lambda t: t.update(extra=torch.ones(2))),
        r"1 unknown to the model \(extra\)",
    ),
    "layers too many": (
        lambda f: change_config(f, num_hidden_layers=1, layer_types=None),
        r"9 unknown to the model \(model\.layers\.1\..*, …\)",
    ),
    "another size": (
        lambda f: change_config(f, intermediate_size=96),
        r"6 of another size \(.*down_proj\.weight \(64, 128\) instead of \(64, 96\)",
    ),
    "an untied head": (
        lambda f: change_config(f, tie_word_embeddings=False),
        r"1 missing \(lm_head\.weight\)",
    ),
    "not a number": (
        lambda f: change_weights(f, lambda t: t["model.norm.weight"].fill_(float("nan"))),
        r"1 weights hold NaN or infinite values \(model\.norm\.weight\)",
    ),
    "infinite": (
        lambda f: change_weights(f, lambda t: t["model.norm.weight"].fill_(float("inf"))),
        "hold NaN or infinite values",
    ),
    "a tokenizer too large": (
        lambda f: (
            change_config(f, vocab_size=200),
            change_weights(
                f, lambda t: t.update({k: v[:200].clone() for k, v in t.items() if "embed" in k})
            ),
        ),
        "tokenizer has 259 tokens, its embedding 200 rows",
    ),
    "a tokenizer too small": (
        lambda f: (
            change_config(f, vocab_size=518),
            change_weights(
                f, lambda t: t.update({k: v.repeat(2, 1) for k, v in t.items() if "embed" in k})
            ),
        ),
        "tokenizer has 259 tokens, its embedding 518 rows",
    ),
    "a tokenizer without a vocabulary": (
        lambda f: remove(f, "tokenizer.json"),
        "could not be loaded|tokenizer has",
    ),
    "an unknown architecture": (
        lambda f: change_config(f, model_type="llama9"),
        "could not be loaded.*llama9",
    ),
    "an unknown activation": (
        lambda f: change_config(f, hidden_act="nonsense"),
        "could not be loaded: KeyError: 'nonsense'; mend what transformers names",
    ),
    "a word for a number": (
        lambda f: change_config(f, rms_norm_eps="small"),
        "could not be loaded: .*rms_norm_eps.*small",
    ),
    "settings of generation out of range": (
        lambda f: (f / "generation_config.json").write_text('{"max_new_tokens": -1}'),
        "could not be loaded: .*max_new_tokens",
    ),
    "attention that is not installed": (
        lambda f: change_config(f, attn_implementation="flash_attention_2"),
        "could not be loaded: ImportError: .*FlashAttention2",
    ),
}


@pytest.mark.parametrize("broken, message", SEEN.values(), ids=SEEN.keys())
def test_a_look_at_the_files_refuses(folder, broken, message):
    """Already where the digest is made: at plan."""
    broken(folder)
    with pytest.raises(DataError, match=message) as caught:
        source(folder).identity()
    assert str(caught.value).startswith(f"model folder {folder}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken, message", FOUND.values(), ids=FOUND.keys())
def test_loading_refuses(folder, broken, message):
    broken(folder)
    source(folder).identity()  # nothing to be seen from outside
    with pytest.raises(DataError, match=message) as caught:
        source(folder).load()
    assert f"model folder {folder}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", [*SEEN, *FOUND])
def test_advice_fits_the_cause(folder, broken):
    """Pickles and networks are named only where they are to blame."""
    (SEEN | FOUND)[broken][0](folder)
    with pytest.raises(DataError) as caught:
        source(folder).identity()
        source(folder).load()
    message = str(caught.value)
    assert "network" not in message
    assert ("safetensors_only" in message) == ("pickle" in broken)


def test_a_sound_folder_is_loaded_as_it_is(sound):
    model, tokenizer = source(sound).load()
    for name, value in tiny_model("llama").state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert len(tokenizer) == 259 and not model.training


def test_pickles_load_as_safetensors(folder):
    expected = source(folder).load()[0].state_dict()
    pickled(folder, keep=True)
    remove(folder, WEIGHTS)
    loaded, _ = source(folder, safetensors_only=False).load()
    assert all(torch.equal(loaded.state_dict()[name], expected[name]) for name in expected)
    (folder / "pytorch_model.bin").write_text(POINTER)
    with pytest.raises(DataError, match=r"pytorch_model\.bin is a git-lfs pointer"):
        source(folder, safetensors_only=False).identity()


def test_shards_load_as_one_file(folder):
    expected = source(folder).load()[0].state_dict()
    shards(folder)
    source(folder).check()
    loaded = source(folder).load()[0].state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_tied_weights_need_not_be_there(any_family, tmp_path):
    """What a family ties or ignores is not missing, whatever the family."""
    model = tiny_model(any_family)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = source(tmp_path).load()[0].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_padding_of_the_embedding_is_no_fault(folder):
    padded = tiny_model("llama", vocab_size=272)
    padded.save_pretrained(folder)
    assert source(folder).load()[0].config.vocab_size == 272


def test_paths(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    whole = source(folder).identity()
    assert source("model").identity() == source("~/model").identity() == whole
    assert source("~/model").load()[0].config.hidden_size == 64
    for wrong, message in [
        (folder / "none", "does not exist"),
        (folder / "config.json", "is a file; expected a folder"),
        (tmp_path, f"the model seems to be in {folder}"),
    ]:
        with pytest.raises(DataError, match=message):
            source(wrong).identity()


def test_an_unreadable_file_is_named(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "config.json")

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(DataError, match=r"config\.json cannot be read \(Permission denied\)"):
        source(folder).identity()


def test_looking_does_not_import_torch(folder):
    code = (
        "import sys\nfrom effllm.modules.modeling.sources import PretrainedFolder\n"
        f"PretrainedFolder(name='m', path={str(folder)!r}).check()\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_stored_checkpoint_with_a_hole_is_refused(folder):
    change_weights(folder, lambda t: t.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(DataError, match="1 missing"):
        load_any(folder, "float32")


def test_code_of_a_model_runs_only_if_the_user_said_so(folder, monkeypatch):
    """Nobody is asked on the terminal."""
    own_code(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(ValueError, match="custom code"):
        load_any(folder, "float32")
    model, _ = source(folder, trust_remote_code=True).load()
    assert type(model).__name__ == "MyLlama"
    remove(folder, "modeling_my.py")
    with pytest.raises(DataError, match=r"its code modeling_my\.py is missing"):
        source(folder, trust_remote_code=True).identity()


def test_code_that_is_not_needed_does_not_matter(folder):
    """Many families of the hub still carry the code from before transformers had them."""
    own_code(folder)
    change_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    assert type(source(folder).load()[0]).__name__ == "LlamaForCausalLM"


def test_errors_of_a_models_own_code_are_one_line(folder):
    own_code(folder, "broken")  # transformers remembers classes by their kind
    (folder / "modeling_my.py").write_text("raise RuntimeError('first\\nsecond')\n")
    with pytest.raises(DataError, match="could not be loaded: RuntimeError: first second"):
        source(folder, trust_remote_code=True).load()


class _Hub:
    """Stands for the hub: one model with the given files."""

    def __init__(self, names, config, tmp_path, monkeypatch):
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        siblings = [SimpleNamespace(rfilename=name) for name in names]
        answer = SimpleNamespace(siblings=siblings)
        monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: answer)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))


@pytest.mark.parametrize(
    "names, changes, message",
    [
        (["adapter_config.json"], {}, "is an adapter"),
        (["config.json", "tokenizer.json", "pytorch_model.bin"], {}, "safetensors_only=false"),
        (["config.json", "tokenizer.json", "onnx/model.onnx"], {}, "has no weights"),
        (["config.json", WEIGHTS], {}, "has no tokenizer"),
        (
            ["config.json", WEIGHTS, "tokenizer.json"],
            {"quantization_config": {"quant_method": "awq"}},
            r"quantised \(awq\)",
        ),
        (["config.json", WEIGHTS, "tokenizer.json"], {"is_encoder_decoder": True}, "encoder-dec"),
        (["config.json", WEIGHTS, "tokenizer.json"], {}, None),
    ],
)
def test_a_model_on_the_hub_is_looked_at_before_it_is_fetched(
    names, changes, message, tmp_path, monkeypatch
):
    _Hub(names, tiny_config("llama").to_dict() | changes, tmp_path, monkeypatch)
    model = PretrainedFolder(name="owner/name")
    if message is None:
        model.check()
        return
    with pytest.raises(DataError, match=f"model owner/name: .*{message}"):
        model.check()


def test_code_of_a_model_in_the_local_cache_is_not_missed(tmp_path, monkeypatch):
    """The cache does not list what the repository holds."""
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_my.My"}, "model_type": "mine"}
    _Hub([], tiny_config("llama").to_dict() | code, tmp_path, monkeypatch)
    PretrainedFolder(name="owner/name", trust_remote_code=True).check()
    with pytest.raises(DataError, match="its own code"):
        PretrainedFolder(name="owner/name").check()


def test_an_unknown_tiny_family_is_refused():
    with pytest.raises(ConfigError, match="unknown family 'lama'"):
        TinyRandom(family="lama").load()


def test_a_model_without_its_head_is_refused(tmp_path):
    """A base model saved alone: its head would be random numbers."""
    model = tiny_model("qwen2")
    model.model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert isinstance(AutoModelForCausalLM.from_config(model.config), type(model))
    with pytest.raises(DataError, match=r"1 missing \(lm_head\.weight\)"):
        source(tmp_path).load()
