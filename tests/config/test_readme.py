"""What README tells people to type works."""

import re
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
    assert {"make sds", "make test"} <= set(commands())


@pytest.mark.parametrize("line", [c for c in commands() if re.match(r"effllm (run|plan)", c)])
def test_runs_of_the_readme_compose(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wiki.test.raw").write_text("a line\n")
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


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_cache_example_runs(tiny_llama, tokenizer, capsys):
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    loading = [line for line in code.splitlines() if ".from_pretrained(folder)" in line]
    assert [line.split(" = ")[0] for line in loading] == ["model", "tokenizer"]
    repeats = "* 200"
    assert repeats in code
    for line in loading:  # a tiny model instead, which has 512 positions
        code = code.replace(line, "")
    code = code.replace(repeats, "* 25")
    exec(code, {"model": tiny_llama, "tokenizer": tokenizer})
    held, full = re.findall(r"\d[\d,]*", capsys.readouterr().out)
    assert 0 < int(held.replace(",", "")) < int(full.replace(",", ""))


def test_the_notebook_example_runs(tiny_llama, generator):
    import torch

    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL).group(1)
    windows = torch.randint(3, 259, (2, 16), generator=generator)
    exec(code, {"model": tiny_llama, "windows": windows})
    assert float((tiny_llama.model.layers[1].mlp.up_proj.weight == 0).float().mean()) == 0.5
