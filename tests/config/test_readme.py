"""What README tells people to type works."""

import re
import subprocess
from pathlib import Path

import pytest

from effllm.pipelines.commands.composing import CONF_DIR, compose, resolve
from effllm.pipelines.commands.verbs import app
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.store import Store

ROOT = Path(CONF_DIR).resolve().parent
README = (ROOT / "README.md").read_text()


def commands():
    """Every line of README's shell blocks, without its comment."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_readme_has_commands():
    assert {"make demo", "make sds"} <= set(commands())


@pytest.mark.parametrize("line", [c for c in commands() if re.match(r"effllm (run|plan)", c)])
def test_runs_of_the_readme_compose(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("a line\n")
    overrides = [re.sub(r",.*", "", word) for word in line.split()[2:] if word != "-m"]
    pipeline, _ = resolve(compose(overrides))
    assert build_graph(pipeline, Store(tmp_path))


def test_verbs_and_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    verbs = [one.name or one.callback.__name__ for one in app.registered_commands]
    for line in commands():
        program, verb = line.split()[:2]
        if program == "make":
            paper = ROOT / "conf" / "paper" / f"{verb.replace('-', '_')}.yaml"
            assert paper.is_file() or re.search(rf"^{verb}:", makefile, flags=re.MULTILINE)
        elif program == "effllm":
            assert verb in verbs


def test_cleaning_asks_before_it_takes_results(tmp_path):
    def make(target, answer):
        command = ["make", "-f", str(ROOT / "Makefile"), "-C", str(tmp_path), target]
        subprocess.run(command, input=answer, text=True, capture_output=True, check=True)
        return (tmp_path / "outputs").is_dir()

    (tmp_path / "outputs").mkdir()
    assert make("clean", "") and make("clean-results", "\n") and make("clean-results", "n\n")
    assert not make("clean-results", "y\n")


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def blocks_of(file):
    return re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)


def runs_on_a_tiny_model(code, model, tokenizer):
    """Run an example with a tiny model instead of its own, which has 512 positions."""
    loading = [line for line in code.splitlines() if ".from_pretrained(folder)" in line]
    for line in loading:
        code = code.replace(line, "")
    assert "* 200" in code
    exec(code.replace("* 200", "* 25"), {"model": model, "tokenizer": tokenizer})
    return [line.split(" = ")[0] for line in loading]


def test_the_example_of_the_readme_runs(tiny_llama, tokenizer, capsys):
    (code,) = blocks_of("README.md")
    runs_on_a_tiny_model(code, tiny_llama, tokenizer)
    held, full = re.findall(r"\d[\d,]*", capsys.readouterr().out)
    assert 0 < int(held.replace(",", "")) < int(full.replace(",", ""))
    assert float((tiny_llama.model.layers[1].mlp.up_proj.weight == 0).float().mean()) == 0.5


def test_the_cache_example_runs(tiny_llama, tokenizer, capsys):
    code = blocks_of("docs/python.md")[1]
    assert runs_on_a_tiny_model(code, tiny_llama, tokenizer) == ["model", "tokenizer"]
    held, full = re.findall(r"\d[\d,]*", capsys.readouterr().out)
    assert 0 < int(held.replace(",", "")) < int(full.replace(",", ""))


def test_the_decoding_example_runs(tiny_llama, tokenizer, capsys):
    code = blocks_of("docs/python.md")[2]
    assert "FirstLayers(6)" in code
    code = code.replace("FirstLayers(6)", "FirstLayers(1)")  # the tiny model has two
    inputs = tokenizer("again and again and again", return_tensors="pt")
    exec(code, {"model": tiny_llama, "tokenizer": tokenizer, "inputs": inputs})
    shown = capsys.readouterr().out
    drafted, looked_up = re.findall(r"^(\d+\.\d\d) tokens per pass: ", shown, re.MULTILINE)
    assert float(drafted) >= 1 and float(looked_up) >= 1


def test_the_pruning_example_runs(tiny_llama, generator):
    import torch

    windows = torch.randint(3, 259, (2, 16), generator=generator)
    exec(blocks_of("docs/python.md")[0], {"model": tiny_llama, "windows": windows})
    assert float((tiny_llama.model.layers[1].mlp.up_proj.weight == 0).float().mean()) == 0.5
