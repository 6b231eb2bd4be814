"""The first look at smoke scale, and notebooks on a tiny model and on what it left."""

import json
from pathlib import Path

import pytest

from effllm.modules.modeling.tiny import byte_tokenizer, tiny_model
from effllm.pipelines.cli import main

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.ipynb"))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "scale=smoke", f"paths.outputs={folder}"]) == 0
    return folder


def test_the_page_has_three_sentences_and_three_pictures(outputs):
    folder = outputs / "reports" / "demo-smoke"
    page = (folder / "report.md").read_text()
    for name in ("perplexity", "tokens_per_second", "bytes_per_token_of_context"):
        assert f"(figures/{name}.png)" in page
        assert (folder / "figures" / f"{name}.svg").stat().st_size > 0
    assert "from the first 2 of 2 blocks" in page
    rows = json.loads((folder / "results.json").read_text())
    assert [row["method"] for row in rows] == [
        *("Dense", "Wanda", "SparseGPT", "Plain", "Lookup", "Dense cache", "SparK")
    ]
    values = {row["method"]: next(iter(row["metrics"].values())) for row in rows}
    assert 0 < values["SparK"] < values["Dense cache"]


def test_a_second_look_reuses_everything(outputs, capsys):
    assert main(["demo", "scale=smoke", f"paths.outputs={outputs}"]) == 0
    assert " 0 to run" in capsys.readouterr().out


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_notebook_runs(file, outputs, tmp_path, monkeypatch):
    """Cell after cell, with its parameters set to a tiny model and to the results above."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("tiny")
    byte_tokenizer().save_pretrained("tiny")
    names = {}
    for cell in json.loads(file.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "notebooks are stored without outputs"
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names |= {"MODEL": "tiny", "OUTPUTS": str(outputs)}
    assert len(names) > 5
