"""Amphista at smoke scale through the command line."""

import csv
import json
import math

import pytest
from said import flat, read_report

from effllm.pipelines.cli import main

ARGUMENTS = ["run", "paper=amphista", "scale=smoke", "logger=none"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("amphista")
    assert main([*ARGUMENTS, f"paths.outputs={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def report(outputs):
    return outputs / "reports" / "amphista-smoke"


@pytest.fixture(scope="module")
def rows(report):
    return {row["method"]: row for row in read_report(report, "tau", "curves", "tree")}


def test_every_arm_is_there_with_its_seeds(rows):
    assert {arm: row["seed"] for arm, row in rows.items()} == {
        "Medusa-1": [0, 1, 2],
        "Medusa, 3 blocks": [0, 1, 2],
        "Medusa + chosen token": [0],
        "Amphista": [0, 1, 2],
        "Amphista without encoder": [0],
        "Amphista without staged layers": [0],
        "Amphista without chosen token": [0],
    }


def test_figures_lie_in_their_intervals_and_trees_grow(rows):
    for row in rows.values():
        for key, ends in row["intervals"].items():
            low, high = ends or (-math.inf, math.inf)
            assert low <= row["metrics"][key] <= high
        taus = [row["metrics"][f"tau/{nodes}"] for nodes in (4, 8, 16, 63)]
        assert taus == sorted(taus) and taus[0] >= 1 and taus[-1] <= 5


def test_every_arm_decodes_the_text_of_generate(outputs):
    (file,) = (outputs / "artifacts" / "bench_heads").glob("*/predictions.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    texts = {(row["set"], row["id"]): row["output"] for row in found}
    arms = {row["set"] for row in found}
    heads = {"medusa_8", "medusa_matched_8", "amphista_4", "amphista_8", "amphista_16"}
    assert arms == {"plain", "generate", "lookup", *heads}
    for (_, prompt), output in texts.items():
        assert output == texts["generate", prompt]
    for row in found:
        if row["set"] in heads:
            assert row["emitted"] == row["tokens"] - 1 and row["rounds"] <= row["emitted"]
            assert row["drafted"] <= row["rounds"] * int(row["set"].rpartition("_")[2])
            assert 0 < row["draft_passes"] <= row["rounds"]


def test_the_page_names_heads_as_heads(report):
    text = (report / "report.md").read_text()
    for title in ("Medusa-1, 8 nodes: exact", "Amphista, 16 nodes: exact"):
        assert f"| {title} |" in text
    assert "Prompt lookup, K=12: exact" in text


def test_the_learning_curve_begins_with_the_targets_own_head(report):
    """Before the first step all drafters say the same."""
    with (report / "figures" / "curves.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    for head in "1234":
        starts = {r["right_percent"] for r in found if r["step"] == "0" and r["head"] == head}
        assert len(starts) == 1
    assert {row["arm"] for row in found} == {"Medusa-1", "Medusa, 3 blocks", "Amphista"}


def test_verdicts_follow_from_the_numbers(outputs):
    """A gain is that of all texts and seeds, and one seed must clear the spread of three."""
    from effllm.pipelines.artifacts.base import Artifact
    from effllm.pipelines.artifacts.heads import Heads, HeadScores
    from effllm.pipelines.reports.amphista.claims import verdicts
    from effllm.pipelines.reports.amphista.scores import AMPHISTA, MEDUSA, Study
    from effllm.pipelines.reports.results import Results

    def opened(stage, kind: type[Artifact]):
        for folder in sorted((outputs / "artifacts" / stage).iterdir()):
            yield kind(folder, json.loads((folder / "manifest.json").read_text()))

    results = Results([*opened("train_heads", Heads), *opened("evaluate_heads", HeadScores)])
    study = Study.of(results, 500)
    assert sum(len(mine) for mine in study.arms.values()) == 13
    per_seed = []
    for seed in range(3):
        taus = []
        for arm in (AMPHISTA, MEDUSA):
            scored = study.arms[arm][seed].scores.rows()
            accepted = sum(row["accepted"]["16"] for row in scored)
            taus.append(accepted / sum(row["positions"] for row in scored))
        per_seed.append(taus[0] - taus[1])
    gain = study.gain(AMPHISTA, MEDUSA, 16)
    assert gain.value == pytest.approx(sum(per_seed) / 3)
    assert study.tau(AMPHISTA, 16).value - study.tau(MEDUSA, 16).value == pytest.approx(gain.value)
    mean = sum(per_seed) / 3
    spread = math.sqrt(sum((one - mean) ** 2 for one in per_seed) / 2)
    assert study.seed_margin(16) == pytest.approx(2 * spread)
    claims = flat(verdicts(study, "tiny_llama"))
    assert len(claims) == 4 + 4 + 6 + 1
    for verdict in claims[:4]:  # the paper's, which was another model
        assert any(one.startswith("target = tiny_llama") for one in verdict.conditions) or (
            verdict.outcome == "inconclusive"
        )


def test_generate_finds_the_heads_of_the_last_run(outputs, tmp_path, capsys):
    common = ["model=tiny_llama", "dtype=float32", "max_new_tokens=12"]
    mine = [*common, f"paths.outputs={outputs}"]
    assert main(["generate", "hello, 'you'", *mine, "decoder=plain"]) == 0
    plain = capsys.readouterr().out
    assert main(["generate", "hello, 'you'", *mine, "decoder=amphista"]) == 0
    shown = capsys.readouterr()
    assert shown.out == plain and "drafted tokens kept" in shown.err
    empty = [*common, f"paths.outputs={tmp_path}", "decoder=amphista"]
    assert main(["generate", "hello", *empty]) == 1
    assert "no Amphista heads of this model; train some" in capsys.readouterr().err


def test_generate_takes_named_heads_and_refuses_those_of_another_model(outputs, capsys):
    common = [f"paths.outputs={outputs}", "dtype=float32", "max_new_tokens=8", "decoder=amphista"]
    medusa = next(
        folder.name
        for folder in (outputs / "artifacts" / "train_heads").iterdir()
        if json.loads((folder / "heads.json").read_text())["class"] == "MedusaToken"
    )
    named = ["draft=checkpoint", f"draft.ref=train_heads/{medusa}"]
    assert main(["generate", "hello", "model=tiny_llama", *common, *named]) == 0
    capsys.readouterr()
    assert main(["generate", "hello", "model=tiny_qwen", *common, *named]) == 1
    assert "belongs to another target" in capsys.readouterr().err
    (text,) = [one.name for one in (outputs / "artifacts" / "import_model").iterdir()][:1]
    wrong = ["draft=checkpoint", f"draft.ref=import_model/{text}"]
    assert main(["generate", "hello", "model=tiny_llama", *common, *wrong]) == 1
    assert "holds no heads" in capsys.readouterr().err
    assert main(["generate", "hello", "model=tiny_llama", *common, "draft=first_layers"]) == 1
    assert "drafts by trained heads" in capsys.readouterr().err
