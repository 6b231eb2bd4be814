"""SparK at smoke scale, through the command line."""

import json
import shutil

import pytest
from said import read_report

from effllm.pipelines.cli import main


def command(folder, *more):
    return ["run", "paper=spark", "scale=smoke", "logger=none", f"paths.outputs={folder}", *more]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spark")
    assert main(command(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def evaluations(outputs):
    """Rows of every evaluation, by its number of arms."""
    found = {}
    for file in (outputs / "artifacts" / "evaluate_cache").glob("*/predictions.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[len({row["set"] for row in rows})] = rows
    return found


def test_every_arm_sees_every_example(evaluations):
    assert len(evaluations) == 4  # the main arms, the ablation, the question inside, more prompts
    for arms, rows in evaluations.items():
        examples = {row["id"] for row in rows}
        assert len(rows) == arms * len(examples)
    main_rows = evaluations[max(evaluations)]
    assert {row["group"] for row in main_rows} == {
        *("text", "needle", "multikey", "chain", "common_word", "article"),
    }


def test_what_is_compressed_less_is_nearer_to_the_full_cache(evaluations):
    rows = evaluations[max(evaluations)]

    def kl(arm):
        found = [row["kl"] for row in rows if row["set"] == arm and row["group"] == "text"]
        return sum(found) / len(found)

    assert kl("dense") < 1e-6
    assert kl("spark_50") < kl("spark_80") < kl("think_80")
    assert kl("int8") < kl("int4") < kl("int2")
    assert kl("snapkv_for_50") < kl("snapkv_25")


def test_bytes_are_those_of_the_formula(evaluations):
    """Tiny model: 2 layers, 2 key heads of 16 channels, 16-bit states, 80 tokens of context."""
    rows = evaluations[max(evaluations)]
    held = {row["set"]: row["bytes"] for row in rows if row["id"] == "window-0"}
    heads = 2 * 2
    assert held["dense"] == heads * 80 * 64
    assert held["spark_80"] == heads * (48 * (4 * 2 + 2 + 2 + 2 + 32) + 32 * 64 + 6 * 16)
    assert held["spark_50"] == heads * (48 * (8 * 2 + 2 + 2 + 2 + 32) + 32 * 64 + 6 * 16)
    assert held["snapkv_25"] == heads * 20 * 64


def test_the_report_says_what_is_the_papers_and_judges_nothing(outputs):
    folder = outputs / "reports" / "spark-smoke"
    page = (folder / "index.html").read_text()
    assert "because the full cache answers under 20 %" in " ".join(page.split())
    for row in read_report(folder, "tradeoff", "kept"):
        for key, ends in row["intervals"].items():
            assert (ends is None) == (row["n"][key] < 5)


def test_an_interrupted_evaluation_goes_on_at_the_next_example(outputs, tmp_path, monkeypatch):
    from effllm.pipelines.stages.kvcache.evaluate_cache import EvaluateCache

    shutil.copytree(outputs / "artifacts", tmp_path / "artifacts")
    kept = {
        file.parent.name: file.read_text()
        for file in (tmp_path / "artifacts" / "evaluate_cache").glob("*/predictions.jsonl")
    }
    shutil.rmtree(tmp_path / "artifacts" / "evaluate_cache")
    text, calls = EvaluateCache._text, []

    def stop(stage, model, name, tokens):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return text(stage, model, name, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(EvaluateCache, "_text", stop)
        assert main(command(tmp_path, "execute.until=ablate")) == 130
    calls.clear()

    def count(stage, model, name, tokens):
        calls.append(name)
        return text(stage, model, name, tokens)

    monkeypatch.setattr(EvaluateCache, "_text", count)
    assert main(command(tmp_path, "execute.until=ablate")) == 0
    assert calls == ["window-2", "window-3"]
    (again,) = (tmp_path / "artifacts" / "evaluate_cache").glob("*/predictions.jsonl")
    assert again.read_text() == kept[again.parent.name]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pipeline.ablate.arms.spark_80.keys.ratio=1.0"], "less than 1"),
        (["pipeline.ablate.continuation=95"], "make them longer"),
        (["~pipeline.ablate.arms.dense"], "named dense"),
        (["pipeline.ablate.inputs.windows=[]"], "neither windows nor prompts"),
        (["pipeline.prompts.lengths=[40]", "execute.until=prompts"], "ask for more"),
    ],
)
def test_wrong_settings_are_refused_on_one_line(outputs, capsys, overrides, message):
    assert main(command(outputs, "execute.until=ablate", *overrides)) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_any_eviction_with_any_format_is_one_line_of_configuration(outputs):
    arm = "pipeline.ablate.arms.spark_80_zero"
    wanted = [f"+eviction@{arm}.evict=tova", f"cache_format@{arm}.values=token_integers"]
    assert main(command(outputs, "execute.until=ablate", *wanted)) == 0


def test_a_published_set_stands_in_for_the_articles(tmp_path):
    row = {"context": "one two three " * 3, "question": "What?", "answer_prefix": " It is"}
    rows = [{**row, "answer": [str(n)], "task": "count"} for n in range(5)]
    rows.append({**rows[0], "context": "one " * 200})
    file = tmp_path / "ruler.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    wanted = ["long_prompts@pipeline.prompts=ruler", f"pipeline.prompts.source.path={file}"]
    wanted += ["pipeline.prompts.longest=128", "pipeline.prompts.per_task=6"]
    assert main(command(tmp_path, "execute.until=evaluate", *wanted)) == 0
    (manifest,) = (tmp_path / "artifacts" / "import_long_prompts").glob("*/manifest.json")
    metrics = json.loads(manifest.read_text())["metrics"]
    assert metrics == {"prompts": 5, "left_out": 1, "count/prompts": 5}
    (found,) = (tmp_path / "artifacts" / "evaluate_cache").glob("*/predictions.jsonl")
    scored = [json.loads(line) for line in found.read_text().splitlines()]
    assert {one["group"] for one in scored if "score" in one} == {"count"}
