"""Compiled steps give the logits of the model itself, or are refused with a reason."""

import pytest
import torch
from compiled import any_processor, needs_compiler  # noqa: F401
from transformers import PreTrainedModel

from effllm.kernels import native
from effllm.kernels.native import NoCompilerError, load_library
from effllm.modules.decoding.drafts import first_layers
from effllm.modules.decoding.proposers.base import Nothing
from effllm.modules.decoding.session import Session
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.drafting.shape import reduce_vocabulary
from effllm.modules.inference import fast_path
from effllm.modules.inference.fast_path import compiled_steps, speed_up
from effllm.modules.inference.native_step import pack_rows
from effllm.modules.inference.runner import ModelRunner
from effllm.modules.modeling.tiny import tiny_model


def lively_model(family: str, **changes) -> PreTrainedModel:
    """A tiny model whose norms and biases are not ones and zeros."""
    model, dice = tiny_model(family, **changes), torch.Generator().manual_seed(1)
    for value in model.parameters():
        if value.dim() == 1:
            value.data += torch.rand(value.shape, generator=dice)
    return model


def pair(family: str, dtype: torch.dtype = torch.float32, **changes) -> list[ModelRunner]:
    """The model itself, and the same model with compiled steps."""
    models = [lively_model(family, **changes).to(dtype) for _ in range(2)]
    assert speed_up(models[1]).kind == "compiled"
    runners = [ModelRunner(one) for one in models]
    assert [one.steps is None for one in runners] == [True, False]
    return runners


@needs_compiler
@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "intermediate_size": 70}),
        ("llama", {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 48}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_logits_are_those_of_the_model(family, changes, generator):
    plain, compiled = pair(family, **changes)
    for count in (1, 2, 3, 5, 8, 9, 17, 64, 131, 1, 70):
        tokens = torch.randint(3, 256, (count,), generator=generator).tolist()
        rows = min(count, 66)
        first, second = (one.advance(tokens, rows=rows) for one in (plain, compiled))
        assert first.shape == second.shape == (rows, plain.vocabulary)
        torch.testing.assert_close(first, second, rtol=1e-5, atol=2e-5)
    assert plain.ids == compiled.ids and compiled.cache.get_seq_length() == len(plain.ids)


@needs_compiler
@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_bfloat16_is_as_near_to_float32_as_eager_bfloat16(family, generator):
    runners = [ModelRunner(lively_model(family).bfloat16().float()), *pair(family, torch.bfloat16)]
    errors = []
    for count in (40, 1, 3, 8, 64, 1):
        tokens = torch.randint(3, 256, (count,), generator=generator).tolist()
        exact, eager, compiled = (one.advance(tokens) for one in runners)
        errors += [((eager - exact).square().mean(), (compiled - exact).square().mean())]
    of_eager, of_compiled = torch.tensor(errors).mean(0)
    assert 0 < of_compiled < 1.2 * of_eager


@needs_compiler
def test_trees_rollbacks_and_kept_paths(generator):
    plain, compiled = pair("llama")
    for one in (plain, compiled):
        one.advance(list(range(3, 40)))
    parents = [-1, -1, 0, 1, 1, 3, 2]
    nodes = torch.randint(3, 256, (len(parents),), generator=generator).tolist()
    for path in ([1, 3, 5], [0], [1, 4], [0, 2, 6]):
        start = len(plain.ids)
        found = [one.advance(nodes, parents=parents) for one in (plain, compiled)]
        torch.testing.assert_close(*found, rtol=1e-5, atol=2e-5)
        for one in (plain, compiled):
            one.keep(start, path)
        torch.testing.assert_close(*(one.advance([7, 9]) for one in (plain, compiled)))
        for one in (plain, compiled):
            one.rollback_to(start + 1)
    plain.reset(), compiled.reset()
    torch.testing.assert_close(*(one.advance([7, 9, 11]) for one in (plain, compiled)))


@needs_compiler
def test_a_sliding_window_hides_old_tokens(generator):
    plain, compiled = pair("mistral", sliding_window=16)
    tokens = torch.randint(3, 256, (90,), generator=generator).tolist()
    torch.testing.assert_close(*(one.advance(tokens) for one in (plain, compiled)))
    torch.testing.assert_close(*(one.advance([5, 6, 7]) for one in (plain, compiled)))
    parents = [-1, -1, -1, 2, 2, 4, 5, 6, 6]
    found = [one.advance(tokens[:9], parents=parents) for one in (plain, compiled)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=2e-5)


@needs_compiler
@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "wide"])
def test_a_tokens_logits_do_not_depend_on_the_rest_of_its_pass(family, dtype, generator):
    """So exact decoding keeps the text to the last token, whatever chains are drafted."""
    changes = {"sliding_window": 100} if family == "mistral" else {}
    if family == "wide":  # half-filled words, and more queries than are scored at a time
        family = "llama"
        changes = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 48}
    _, runner = pair(family, dtype, **changes)
    tokens = torch.randint(3, 256, (220,), generator=generator).tolist()
    alone = torch.cat([runner.advance([token]) for token in tokens])
    runner.reset()
    together, at = [], 0
    for count in (100, 1, 3, 16, 17, 2, 64, 9, 8):
        together.append(runner.advance(tokens[at : at + count]))
        at += count
    assert at == len(tokens) and torch.equal(torch.cat(together), alone)


@needs_compiler
def test_one_thread_and_two_agree(generator):
    _, compiled = pair("llama")
    tokens = torch.randint(3, 256, (300,), generator=generator).tolist()
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            compiled.reset()
            compiled.advance(tokens)
            found.append(compiled.advance([5, 6, 7, 8]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def fresh_logits(model, ids):
    return ModelRunner(model).advance(ids, rows=1)


@needs_compiler
def test_two_runners_of_one_model_keep_their_own_texts():
    _, first = pair("llama")
    second = ModelRunner(first.model)
    alone = first.advance([5, 6, 7]).clone()
    first.reset()
    first.advance([5])
    second.advance([100, 101, 102, 103])
    first.advance([6])
    second.advance([104] * 300)  # its cache grows
    tree = first.advance([8, 9, 10], parents=[-1, -1, 1]).clone()
    second.advance([105])
    first.keep(2, [1, 2])
    assert first.ids == [5, 6, 9, 10]
    assert torch.equal(first.advance([7]), fresh_logits(first.model, [5, 6, 9, 10, 7]))
    first.rollback_to(2)
    torch.testing.assert_close(first.advance([8, 9, 10], parents=[-1, -1, 1]), tree)
    first.rollback_to(2)
    torch.testing.assert_close(first.advance([7]), alone[2:])


@needs_compiler
def test_first_layers_and_reduced_heads_have_steps_of_their_own():
    model = tiny_model("llama")
    speed_up(model)
    shallow = first_layers(model, 1)
    assert compiled_steps(shallow) is None
    expected = ModelRunner(shallow).advance([65, 66])
    speed_up(shallow)
    torch.testing.assert_close(ModelRunner(shallow).advance([65, 66]), expected)
    wanted = torch.arange(3, 256, 7)  # 37: no whole number of blocks
    reduced = reduce_vocabulary(tiny_model("llama"), wanted)
    full = ModelRunner(tiny_model("llama")).advance([65, 66])
    assert speed_up(reduced).kind == "compiled"
    torch.testing.assert_close(ModelRunner(reduced).advance([65, 66]), full[:, wanted])


@needs_compiler
def test_texts_are_those_of_eager_decoding():
    plain, compiled = pair("qwen3")
    texts = [
        Session(one, Nothing(), Exact()).generate([65, 66], 80).tokens for one in (plain, compiled)
    ]
    assert texts[0] == texts[1]


def test_packing_puts_words_of_sixteen_rows_together():
    weight = torch.arange(18 * 4, dtype=torch.float32).view(18, 4)
    packed = pack_rows(weight)
    assert packed.shape == (2, 16, 16, 1)
    assert torch.equal(packed[0, 1, :, 0], weight[:16, 1]) and packed[1, 0, 2, 0] == 0
    halves = pack_rows(weight.bfloat16())
    assert halves.shape == (2, 8, 16, 2)
    assert torch.equal(halves[0, 1], weight[:16, 2:4].bfloat16())


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("opt", {}, "OPTForCausalLM is none of Llama"),
        ("llama", {"head_dim": 24}, "head size 24"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "dynamic rotation",
        ),
    ],
)
def test_other_models_run_as_before_and_say_why(family, changes, reason):
    model = tiny_model(family, **changes)
    path = speed_up(model)
    assert path.kind == "eager" and reason in str(path)
    assert ModelRunner(model).steps is None


def test_half_precision_and_strange_layers_are_refused():
    assert "float16" in speed_up(tiny_model("llama").half()).reason
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj = torch.nn.Sequential(torch.nn.Bilinear(2, 2, 2))
    assert "Bilinear" in speed_up(model).reason


def test_without_a_compiler_the_fallback_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    native._load.cache_clear()
    model = tiny_model("llama")
    path = fast_path.speed_up(model)
    native._load.cache_clear()
    assert path.kind == "eager" and "no C++ compiler found" in path.reason
    assert ModelRunner(model).advance([65]).shape == (1, 259)
    assert not list(tmp_path.iterdir())


@needs_compiler
@pytest.mark.parametrize("home", ["a file", "unknown"])
def test_where_nothing_can_be_kept_the_fallback_says_so(monkeypatch, tmp_path, home):
    (tmp_path / "file").write_text("")
    if home == "a file":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:  # a user without a name or a home, as in containers
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(native.Path, "home", unknown_home)
    native._load.cache_clear()
    path = fast_path.speed_up(tiny_model("llama"))
    native._load.cache_clear()
    assert path.kind == "eager" and "XDG_CACHE_HOME names the folder" in path.reason


def unknown_home():
    raise RuntimeError("Could not determine home directory.")


@needs_compiler
def test_a_compilers_complaint_is_passed_on_and_nothing_is_left(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    (tmp_path / "broken.cpp").write_text("int main( {")
    native._load.cache_clear()
    with pytest.raises(NoCompilerError, match=r"cannot build broken\.cpp: .*error"):
        load_library("broken.cpp")
    native._load.cache_clear()
    assert not list((tmp_path / "cache").rglob("*.so"))


@needs_compiler
def test_a_library_is_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._load.cache_clear()
    load_library("decode_step.cpp")
    (built,) = tmp_path.rglob("*.so")
    native._load.cache_clear()
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    load_library("decode_step.cpp")
    native._load.cache_clear()
    assert list(tmp_path.rglob("*.so")) == [built]
