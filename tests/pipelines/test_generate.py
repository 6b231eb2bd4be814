"""`effllm generate`: the prompt word for word, and settings refused before a model is loaded."""

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from effllm.modules.decoding import joining
from effllm.modules.errors import ConfigError, EffLLMError
from effllm.modules.modeling.tiny import byte_tokenizer, tiny_model
from effllm.pipelines.cli import main
from effllm.pipelines.commands import decoders, generate
from effllm.pipelines.commands.asked import read_arguments
from effllm.pipelines.commands.composing import CONF_DIR, compose

ROOT = Path(CONF_DIR).resolve().parent
TRICKY = [
    "What is 2+2=?",
    "x=3",
    "E=mc^2",
    "a.b.c=d, e=[f]",
    r"C:\new\table",
    r"\frac{1}{2} and \d+\s",
    "ends with one \\",
    "explain ${HOME} in bash",
    "say ${model.family}",
    "it's \"quoted\", 'twice'",
    "two\nlines\r\nand a tab\t",
    "żółć 🙂 日本",
    " spaces ",
    "???",
    "null",
    "- a list\n- of two",
    "--help me, please",
    "http://x.y/z?q=1&model=2",
]


@pytest.fixture
def piped(monkeypatch):
    """Put bytes on standard input."""

    def put(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return put


@pytest.mark.parametrize("text", TRICKY)
def test_a_prompt_arrives_word_for_word(text, piped, tmp_path):
    settings = ["decoder=plain", "++model.seed=1"]
    file = tmp_path / "prompt.txt"
    file.write_bytes(text.encode())
    assert read_arguments([settings[0], text, settings[1]]).prompt == text
    for asked in (read_arguments([*settings, f"prompt={text}"]), read_arguments(settings, file)):
        assert (asked.prompt, asked.overrides) == (text, settings)
    for arguments in ([], ["-"]):
        piped(text.encode())
        assert read_arguments([*arguments, *settings]).prompt == text
    assert read_arguments(["hello", f"system={text}"]).system in (text, None)


def test_what_looks_like_a_setting_is_one():
    settings = ["verifier@decoder.verifier=fly", "+trainer.accelerator=cpu", "hydra.verbose=true"]
    asked = read_arguments(["prompt=seed=3", *settings, "system=null"])
    assert asked.prompt == "seed=3" and asked.system is None
    assert asked.overrides == [*settings, "system=null"]
    assert read_arguments(["prompt=-"]).prompt == "-"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["two", "words"], "'two', 'words'; put .* in quotes"),
        (["hello", "temperature=0.5"], "'hello', 'temperature=0.5'"),
        ([""], "no prompt, or an empty one"),
        (["prompt="], "no prompt, or an empty one"),
        (["max_token=5"], "did you mean max_new_tokens.*'prompt=max_token=5'"),
        (["promt=hello"], "did you mean prompt"),
        (["-5+3=?"], "unrecognized arguments.*--help"),
        (["bad \udcff byte"], "prompt is no UTF-8"),
        (["hello", "system=\udcff"], "system message is no UTF-8"),
    ],
)
def test_prompts_that_are_none_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        read_arguments(arguments)


@pytest.mark.parametrize(
    ("words", "file", "message"),
    [
        (["hello"], "x", "'hello' and --file"),
        ([], "/no/such/file", "--file /no/such/file: No such file"),
        ([], "/", "--file /: Is a directory"),
    ],
)
def test_files_that_hold_no_prompt_are_refused(words, file, message):
    with pytest.raises(ConfigError, match=message):
        read_arguments(words, Path(file))


def test_bytes_that_are_no_text_are_refused(piped, tmp_path):
    piped(b"caf\xe9")
    with pytest.raises(ConfigError, match="standard input: byte 4 is no UTF-8"):
        read_arguments(["-"])
    piped(b"")
    with pytest.raises(ConfigError, match="no prompt"):
        read_arguments([])
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(ConfigError, match="latin: byte 1 is no UTF-8"):
        read_arguments([], tmp_path / "latin")


@pytest.mark.parametrize("text", ["x=3", "say ${model.family}", r"C:\new\table 'and' \""])
def test_the_model_reads_exactly_the_prompt(text, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(tokenizer, prompt, **options):
        assert (prompt, options["system"]) == (text, f"S {text}")
        raise Stop

    checkpoint = SimpleNamespace(load_tokenizer=byte_tokenizer)
    monkeypatch.setattr(decoders, "imported", lambda *others: checkpoint)
    monkeypatch.setattr(joining, "encode_prompt", stop)
    with pytest.raises(Stop):
        generate.generate_command([text, f"system=S {text}", f"paths.outputs={tmp_path}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dtype=int8"], "dtype='int8'.*'float32'"),
        (["seed=-1"], "seed=-1: .* 0"),
        (["seed=99999999999999999999"], "seed=9+: .*less than"),
        (["seed=true"], "seed=True"),
        (["max_new_tokens=0"], "max_new_tokens=0: .* 1"),
        (["max_new_tokens=2.5"], "max_new_tokens=2.5"),
        (["stop=[5]"], "stop.0=5: .*string"),
        (['stop=[""]'], "stop.0=''"),
        (["stop=x"], "stop='x': .*list"),
        (["chat=maybe", "dtype=7"], r"(?s)chat='maybe': .*\ndtype=7: "),
        (
            ["decoder.verifier.sampling.temperature=-1"],
            "sampling.temperature: .* found -1",
        ),
        (
            ["decoder.verifier.sampling.temperature=nan"],
            "temperature: expected a finite",
        ),
        (["decoder.verifier.sampling.top_p=nan"], "top_p: expected a finite"),
        (["decoder.proposer.tokens=0"], "tokens: .* found 0"),
        (["decoder.proposer.prefer=5"], "prefer: expected 'earliest' or 'latest', found 5"),
        (["decoder=fly", "decoder.verifier.measure=odd"], "'normalized'.*'odd'"),
        (["decoder=typical", "decoder.verifier.epsilon=2"], "epsilon <= 1"),
        (
            ["decoder=margin", "decoder.verifier.margin=nan"],
            "margin: expected a finite",
        ),
        (["+decoder.proposer.beam=2"], "decoder.proposer.beam: PromptLookup has no setting beam"),
        (["+decoder.beam=2"], "decoder.beam=2"),
        (["decoder=draft"], "needs a draft model"),
        (["draft=first_layers"], "drafts without a model; take decoder=draft"),
        (["decoder=draft", "draft=first_layers", "draft.layers=0"], "layers=0: .* 1"),
        (
            ["decoder=draft", "draft=first_layers", "decoder.proposer.tokens=0"],
            "decoder.proposer.tokens: expected .* 1, found 0",
        ),
        (
            ["decoder=draft_tree", "draft=first_layers", "decoder.proposer.widths=[]"],
            "least 1",
        ),
        (["decoder=draft_mla", "draft=first_layers", "decoder.proposer.lookup.tokens=0"], "tokens"),
        (["decoder=draft", "draft=checkpoint", "draft.ref=nothing"], "nothing: no results match"),
        (["trainer.accelerator=banana"], "trainer.accelerator='banana': .*'cpu' or 'gpu'"),
        (["decoder=none"], "none"),
        (["max_new_tokens=${nothing}"], "nothing"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_settings_are_refused_on_one_line_before_a_model_is_imported(
    overrides, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(decoders, "imported", None)  # whoever calls it fails
    with pytest.raises(EffLLMError, match=message) as caught:
        generate.generate_command(["hello", f"paths.outputs={tmp_path}", *overrides])
    assert len(str(caught.value).splitlines()) <= len(overrides)  # a line for each fault


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hello", "decoder=draft", "draft=first_layers"], "the model has 2.*draft.layers, here 1"),
        (["hello", "system=Be brief"], "no chat template; leave out system="),
        (["hello", "system=Be brief", "chat=false"], "chat=false; leave out system="),
        (["hello" * 200], "the prompt: 1000 tokens are more than the model's context of 512"),
    ],
)
def test_what_the_model_cannot_do_is_one_line(arguments, message, tmp_path, capsys):
    common = ["model=tiny_llama", "dtype=float32", f"paths.outputs={tmp_path}"]
    assert main(["generate", *arguments, *common]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"ConfigError: .*{message}", error)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('System role not supported') }}", "says: System role not supported"),
        ("{{ messages[0]['content'] + nothing.more }}", "says: 'nothing' is undefined"),
        ("{% if %}", "says: Expected an expression"),
        ("{{ 1 / 0 }}", "says: division by zero"),
        ("{{ messages[0]['content'] + 1 }}", "says: can only concatenate"),
    ],
)
def test_a_chat_template_that_refuses_is_quoted(template, message, tokenizer):
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=f"{message}.*; leave out system=, or take chat=false"):
        joining.encode_prompt(tokenizer, "hello", chat=True, system="Be brief")
    with pytest.raises(ConfigError, match=f"{message}.*; take chat=false"):
        joining.encode_prompt(tokenizer, "hello", chat=True)
    assert joining.encode_prompt(tokenizer, "hello", chat=False)


@pytest.mark.parametrize(
    "value", ["/x/a=b,c.txt", "/x/żółć.txt", "/x/out dir ü", "a'b\"c=d", "=\\"]
)
@pytest.mark.parametrize("key", ["data.path", "paths.outputs"])
def test_a_value_that_hydra_cannot_read_is_shown_in_quotes(key, value, capsys):
    arguments = ["paper=sds", f"{key}={value}", "data=wikitext2"]
    for verb in ("run", "plan"):
        assert main([verb, *arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"ConfigError: {key}={value}: ") and "in quotes inside" in line
    (typed,) = shlex.split(line.partition("shell's quotes: ")[2])
    config = compose([arguments[0], typed, arguments[2]])
    section, _, name = key.partition(".")
    assert config[section][name] == value


def test_home_is_expanded_in_values(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for given in ("data.path=~/a.txt", 'data.path="~/a.txt"', "data.path='~/a.txt'"):
        config = compose(["paper=sds", "data=wikitext2", given, "paths.outputs=~"])
        assert config.data.path == "/home/me/a.txt" and config.paths.outputs == "/home/me"
    kept = compose(["paper=sds", "data=wikitext2", "data.path='/x/~/a~b'"])
    assert kept.data.path == "/x/~/a~b"
    assert "test_text" not in compose(["paper=sds", "~pipeline.test_text"]).pipeline


def test_an_argument_without_a_value_is_explained(capsys):
    assert main(["plan", "paper=sds", "fast"]) == 1
    assert "'fast': settings are given as key=value" in capsys.readouterr().err


def test_help_is_help_and_imports_no_torch():
    code = (
        "import sys; from effllm.pipelines.cli import main\n"
        "try: main(['generate', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = [m for m in ('torch', 'transformers') if m in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--file" in done.stdout and "What is 2+2=?" in done.stdout


def test_a_prompt_from_the_command_line_to_the_text(tmp_path, capsys):
    common = ["model=tiny_llama", "dtype=float32", f"paths.outputs={tmp_path}", "max_new_tokens=4"]
    text = "What is 2+2=?"
    assert main(["generate", text, *common]) == 0
    shown = capsys.readouterr()
    tokens = byte_tokenizer()(text)["input_ids"]
    model = tiny_model("llama")
    expected = model.generate(torch.tensor([tokens]), max_new_tokens=4, do_sample=False)
    assert shown.out == byte_tokenizer().decode(expected[0, len(tokens) :]) + "\n"
    assert f"({len(tokens)} tokens" in shown.err
