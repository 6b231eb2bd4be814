"""Results in a person's hands: listed, traced back, exported, taken as models, planned in time."""

import json
import re
import shutil

import pytest
import torch
from toy_stages import build_graph
from transformers import AutoModelForCausalLM, AutoTokenizer

from effllm.modules.modeling.tiny import byte_tokenizer, tiny_model
from effllm.pipelines.cli import main
from effllm.pipelines.commands.composing import compose
from effllm.pipelines.engine.planning import estimated_seconds

SMOKE = ["paper=sds", "scale=smoke", "logger=none"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hand")
    assert main(["run", *SMOKE, f"paths.outputs={folder}", "execute.until=wanda_2of4.prune"]) == 0
    return folder


@pytest.fixture
def tell(outputs, capsys):
    """Run a verb on the results; what it printed."""

    def run(*arguments, code=0):
        assert main([*arguments, "--outputs", str(outputs)]) == code
        shown = capsys.readouterr()
        return shown.err if code else shown.out

    return run


def test_ls_says_when_and_by_which_run_and_takes_a_word(tell):
    header, *rows, total = tell("ls").splitlines()
    assert header.split()[:3] == ["result", "made", "(UTC)"] and len(rows) == 4
    assert all(" sds/20" in row for row in rows) and total.startswith("4 results, ")
    (row,) = json.loads(tell("ls", "wanda_2of4", "--json"))
    assert row["ref"].startswith("prune/") and row["run"].startswith("sds/20")
    assert tell("ls", "make_windows").splitlines()[-1].startswith("1 result, ")
    assert "no result has 'prun3' in its name; did you mean prune?" in tell("ls", "prun3", code=1)
    assert "no results match, did you mean prune/?" in tell("show", "prun/", code=1)


def test_show_tells_the_command_and_where_a_result_comes_from(tell):
    shown = tell("show", "prune/")
    assert "command  effllm run paper=sds scale=smoke " in shown and " by sds/20" in shown
    place = shown.index("\nfrom\n  model: import_model/")
    assert "\n  windows: make_windows/" in shown[place:]
    assert "\n    text: import_text/" in shown[place:] and "(see above)" in shown
    assert "from\n  nothing: it comes from outside" in tell("show", "import_text/")


def test_an_exported_model_loads_in_plain_transformers_with_its_card(tell, outputs, tmp_path):
    folder = tmp_path / "my-model"
    assert "README.md" in tell("export", "prune/", str(folder))
    (stored,) = (outputs / "artifacts" / "prune").iterdir()
    model = AutoModelForCausalLM.from_pretrained(folder)
    same = AutoModelForCausalLM.from_pretrained(stored)
    for one, other in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
    assert AutoTokenizer.from_pretrained(folder)("hello")["input_ids"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert 'AutoModelForCausalLM.from_pretrained("my-model")' in card
    assert "| sparsity | 0.5 | `prune/" in card and "model: import_model/" in card
    assert "is there already" in tell("export", "prune/", str(folder), code=1)
    assert "holds windows; models, heads" in tell("export", "make_windows/", "x", code=1)


@pytest.mark.parametrize(
    ("paper", "until", "names"),
    [
        ("amphista", "amphista_0.heads", {"heads": "LoadedHeads"}),
        ("cospec", "fake.warm", {"policies": "dict"}),
        ("permutation", "deal.search", {"orders": "dict"}),
        ("tyr", "s50.uniform", {"model": "CompactLlamaForCausalLM"}),
    ],
)
def test_an_exported_part_is_loaded_as_its_card_says(
    paper, until, names, tmp_path, monkeypatch, capsys
):
    run = ["run", f"paper={paper}", "scale=smoke", "logger=none", f"paths.outputs={tmp_path}"]
    assert main([*run, f"execute.until={until}"]) == 0
    capsys.readouterr()
    assert main(["ls", until, "--json", "--outputs", str(tmp_path)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert main(["export", row["ref"], str(tmp_path / "mine"), "--outputs", str(tmp_path)]) == 0
    card = (tmp_path / "mine" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    for name, kind in names.items():
        assert type(found[name]).__name__ == kind


def test_a_damaged_result_is_not_exported(outputs, tmp_path, capsys):
    copy = tmp_path / "outputs"
    shutil.copytree(outputs, copy)
    (file,) = copy.glob("artifacts/prune/*/masks.json")
    file.write_text("{}")
    command = ["export", "prune/", str(tmp_path / "model"), "--outputs", str(copy)]
    assert main(command) == 1
    assert "masks.json" in capsys.readouterr().err and not (tmp_path / "model").exists()


def test_generate_takes_a_result_as_its_model(outputs, capsys):
    (stored,) = (outputs / "artifacts" / "prune").iterdir()
    common = ["dtype=float32", f"paths.outputs={outputs}", "max_new_tokens=4", "decoder=plain"]
    assert main(["generate", "The river", f"model=artifact:prune/{stored.name[:4]}", *common]) == 0
    model = AutoModelForCausalLM.from_pretrained(stored)
    tokens = byte_tokenizer()("The river", return_tensors="pt")
    expected = model.generate(**tokens, max_new_tokens=4, do_sample=False)[0]
    text = byte_tokenizer().decode(expected[tokens["input_ids"].shape[1] :])
    assert capsys.readouterr().out == f"{text}\n"
    assert main(["generate", "The river", "model=artifact:prune/zz", *common]) == 1
    assert "prune/zz: no results match" in capsys.readouterr().err


def test_a_models_name_may_be_a_folder(tmp_path, monkeypatch):
    tiny_model("llama").save_pretrained(tmp_path / "mine")
    byte_tokenizer().save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("mine", "./mine", str(tmp_path / "mine"), "~/mine", "'mine'"):
        model = compose(["paper=sds", "model=hf", f"model.name={name}"]).model
        assert model.name == "mine" and (tmp_path / model.path / "config.json").is_file()
    assert compose(["paper=sds", "model=hf", "model.name=owner/name"]).model.path is None


def test_a_plan_knows_the_time_of_what_was_made_before(execute, store, pipeline):
    instances = build_graph(pipeline, store)
    assert set(estimated_seconds(instances, store).values()) == {None}
    execute(pipeline)
    (folder,) = (store.artifacts / "count").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["timing"]["seconds"] = 12.0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    pipeline["count"]["seed"] = 1
    found = estimated_seconds(build_graph(pipeline, store), store)
    assert found["count"] == 12.0 and found["double"] is not None
    pipeline["count"]["size"] = 4  # more work, of which nothing is known
    found = estimated_seconds(build_graph(pipeline, store), store)
    assert found["count"] is None and found["double"] is None
    pipeline["count"]["size"] = 3
    manifest["timing"]["resumed"] = True
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert estimated_seconds(build_graph(pipeline, store), store)["count"] is None


def test_plan_says_how_long(outputs, capsys):
    assert main(["plan", *SMOKE, f"paths.outputs={outputs}"]) == 0
    *rows, counts, time = capsys.readouterr().out.splitlines()
    assert "hit" in counts and time.startswith("about ") and "of unknown time" in time
    assert any(row.startswith("run") and row.endswith(" s") for row in rows)
