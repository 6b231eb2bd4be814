"""CoSpec at smoke scale, through the command line."""

import csv
import json
import shutil

import pytest
from safetensors.torch import load_file
from said import read_report

from effllm.pipelines.cli import main

PAIRS = ("fake", "toy", "toy_null")
RULES = {"target", "cospec", "random", "warm", "rl", "self_rl", "difference", "oracle", "draft"}


def arguments(folder):
    return ["run", "paper=cospec", "scale=smoke", "logger=none", f"paths.outputs={folder}"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cospec")
    assert main(arguments(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def rows(outputs):
    found = read_report(outputs / "reports" / "cospec-smoke", "headroom", "frontier")
    return {(row["pattern"], row["method"]): row for row in found}


def test_every_rule_is_judged_on_every_pair(rows):
    for pair in PAIRS:
        assert {rule for name, rule in rows if name == pair} >= RULES
        target = rows[pair, "target"]["metrics"]["right"]
        assert rows[pair, "oracle"]["metrics"]["right"] >= target
        for rule in ("oracle_one", "oracle"):
            assert rows[pair, rule]["metrics"]["gain"] >= 0


def test_the_planted_signal_is_found(rows):
    """200 problems, target .46 and optimum .64 expected: a standard error is .034."""
    right = {rule: rows["fake", rule]["metrics"]["right"] for rule in ("target", "warm", "cospec")}
    assert right["warm"] > right["target"] and right["cospec"] > right["target"]
    gain = rows["fake", "cospec"]["intervals"]["gain"]
    assert gain[0] > 0
    assert rows["fake", "self_rl"]["metrics"]["gain"] <= 0.02  # there is nothing to repair


def test_figures_are_those_of_the_verdicts(outputs, rows):
    for file in (outputs / "artifacts" / "evaluate_policies").glob("*/rules.json"):
        verdicts = load_file(file.parent / "verdicts.safetensors")
        arms = json.loads(file.read_text())["arms"]
        pair = next(name for name, _ in rows if rows[name, "target"]["artifact"].endswith(
            file.parent.name[:12]))  # fmt: skip
        for rule in ("target", "rl"):
            keys = [arm["key"] for arm in arms if arm["rule"] == rule]
            mean = sum(float(verdicts[f"{key}/right"].double().mean()) for key in keys) / len(keys)
            assert rows[pair, rule]["metrics"]["right"] == pytest.approx(mean)


def test_the_page_says_what_it_can_show_and_labels_what_was_not_checked(outputs):
    page = " ".join((outputs / "reports" / "cospec-smoke" / "report.md").read_text().split())
    assert page.index("What small models can show") < page.index("Every rule on fake")
    assert page.count("not checked") == 3
    assert "designed here" in page


def test_rewards_are_logged_for_every_iteration_and_seed(outputs):
    trained = [
        file.parent
        for file in (outputs / "artifacts" / "train_policy").glob("*/arbiters.json")
        if json.loads(file.read_text())["gate_open"]
    ]
    assert trained  # the planted pair's gate is open
    for folder in trained:
        for seed in (0, 1):
            with (folder / f"curve-{seed}.csv").open() as file:
                found = list(csv.DictReader(file))
            rewards = [row for row in found if row["name"] == "reward"]
            assert len(rewards) == 20
            shares = [float(row["value"]) for row in found if row["name"] == "effective_share"]
            assert all(0 < one <= 1 + 1e-6 for one in shares)


@pytest.mark.parametrize(
    ("stage", "step", "file", "place", "last"),
    [
        # In the second epoch of the second seed; in the last of three splits.
        ("train_policy", "fake.rl", "policy-1.safetensors", "reinforcement.Rollouts.collect", 37),
        ("record_branches", "fake.branches", "test.safetensors", "exploring.explore", 3),
    ],
)
def test_an_interrupted_stage_ends_with_the_same_bytes(
    outputs, tmp_path, monkeypatch, stage, step, file, place, last
):
    from effllm.modules.arbitration import exploring, reinforcement

    kept = {
        "reinforcement.Rollouts.collect": reinforcement.Rollouts.collect,
        "exploring.explore": exploring.explore,
    }[place]
    manifests = (outputs / "artifacts" / stage).glob("*/manifest.json")
    (made,) = [one.parent for one in manifests if json.loads(one.read_text())["instance"] == step]
    shutil.copytree(outputs / "artifacts", tmp_path / "artifacts")
    again = tmp_path / "artifacts" / stage / made.name
    shutil.rmtree(again)
    calls = []

    def stop(*given):
        calls.append(given)
        if len(calls) == last:
            raise KeyboardInterrupt
        return kept(*given)

    with monkeypatch.context() as patch:
        patch.setattr(f"effllm.modules.arbitration.{place}", stop)
        assert main([*arguments(tmp_path), f"execute.until={step}"]) == 130
    assert main([*arguments(tmp_path), f"execute.until={step}"]) == 0
    assert json.loads((again / "manifest.json").read_text())["timing"]["resumed"]
    assert (again / file).read_bytes() == (made / file).read_bytes()


def test_a_study_without_a_control_of_the_claim_is_refused(outputs, capsys):
    without = "pipeline.fake.verdicts.inputs.arbiters=[warm,rl]"
    assert main([*arguments(outputs), without, "execute.until=fake.verdicts"]) == 1
    assert "no arbiters are self_rl" in capsys.readouterr().err
