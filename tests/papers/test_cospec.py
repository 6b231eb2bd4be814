"""CoSpec at smoke scale, through the command line."""

import csv
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from said import read_report

from effllm.modules.arbitration.exploring import explore
from effllm.modules.arbitration.problems import decode
from effllm.pipelines.artifacts.arbitration import ArbitrationPair, ArbitrationVerdicts, Shipped
from effllm.pipelines.cli import main
from effllm.pipelines.engine.store import Store

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


def test_timed_arms_decode_the_same_problems_as_the_simulator(outputs):
    (file,) = (outputs / "artifacts" / "bench_arbitration").glob("*/speeds.jsonl")
    timed = [json.loads(line) for line in file.read_text().splitlines()]
    arms = {name: [row for row in timed if row["set"] == name] for name in ("plain", "exact")}
    keys = ("id", "tokens", "correct")
    outcomes = {name: {tuple(row[key] for key in keys) for row in arms[name]} for name in arms}
    assert outcomes["plain"] == outcomes["exact"] and len(outcomes["plain"]) == 4
    label = json.loads((file.parent / "manifest.json").read_text())["inputs"]["verdicts"]
    (verdicts,) = (outputs / "artifacts").glob(f"{label}*")
    right = load_file(verdicts / "verdicts.safetensors")["target/right"][:4].bool()
    assert sorted(row["correct"] for row in arms["plain"]) == sorted(right.tolist())


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


def verdicts_of(outputs, pair):
    """Label of the verdicts on a pair, and the pair."""
    store = Store(outputs)
    for folder, manifest in store.manifests():
        if manifest["instance"] == f"{pair}.verdicts":
            _, found = store.find(manifest["inputs"]["pair"])
            opened = store.open(found["stage"], found["digest"], ArbitrationPair)
            return f"{folder.parent.name}/{folder.name}", opened
    raise AssertionError(pair)


def generate(outputs, capsys, prompt, *settings):
    """Exit code, text and messages of `effllm generate decoder=cospec`."""
    code = main(["generate", prompt, "decoder=cospec", f"paths.outputs={outputs}", *settings])
    shown = capsys.readouterr()
    return code, shown.out.removesuffix("\n"), shown.err


@pytest.mark.parametrize("always", [False, True])
def test_generate_decodes_as_the_simulator_follows(outputs, capsys, monkeypatch, always):
    """With a policy that is never, or always, for the draft."""
    shipped = Shipped("warm", 1, -math.inf) if always else Shipped("target", 1, math.inf)
    monkeypatch.setattr(ArbitrationVerdicts, "shipped", shipped)
    label, stored = verdicts_of(outputs, "toy")
    differ = 0
    for problem in stored.problems("test")[:6]:
        branches = explore(stored.load(), [problem])
        accept = torch.full((len(branches.problem),), always)
        expected = decode(branches.outputs[int(branches.walk(accept))].tolist())
        asked = decode(list(problem.prompt))
        code, text, said = generate(outputs, capsys, asked, f"decoder.arbiter={label}")
        assert (code, text) == (0, expected.translate({0: None, 1: None}))
        assert "pair toy: " in said and ("target alone" in said) != always
        target = branches.outputs[int(branches.walk(torch.zeros_like(accept)))]
        differ += expected != decode(target.tolist())
    assert bool(differ) == always


def test_generate_takes_the_last_policy_that_may_be_shipped(outputs, capsys, monkeypatch):
    monkeypatch.setattr(ArbitrationVerdicts, "shipped", Shipped("rl", 0, 0.5))
    code, _, said = generate(outputs, capsys, "sabcd")
    assert code == 0 and "pair toy_null: policy train_policy/" in said  # fake is made of tables
    monkeypatch.setattr(ArbitrationVerdicts, "shipped", Shipped("target", 0, math.inf))
    code, _, said = generate(outputs, capsys, "sabcd")
    assert code == 1 and "no arbiter that may be shipped; train one" in said


def test_an_arbiter_decodes_with_its_own_pair_only(outputs, capsys):
    (toy, pair), (fake, _) = (verdicts_of(outputs, name) for name in ("toy", "fake"))
    refused = {
        "leave it out": ["sabcd", f"decoder.arbiter={toy}", "model=tiny_llama"],
        "two models that it was trained on": ["sabcd", f"decoder.arbiter={toy}", "draft=none"],
        "made of tables": ["10", f"decoder.arbiter={fake}"],
        "does not know '!', its letters are =;,so": ["sabcd!", f"decoder.arbiter={toy}"],
        "holds no arbitration verdicts": ["s", f"decoder.arbiter={pair.label}"],
        "no results match": ["sabcd", "decoder.arbiter=evaluate_policies/0123"],
        "no chat template": ["sabcd", f"decoder.arbiter={toy}", "system=Be brief"],
    }  # fmt: skip
    for message, (prompt, *settings) in refused.items():
        code, _, said = generate(outputs, capsys, prompt, *settings)
        assert code == 1 and message in said.splitlines()[-1]


def test_shipped_is_what_gains_most_on_validation(outputs):
    """Of the planted pair, whose gate is open."""
    label, _ = verdicts_of(outputs, "fake")
    store = Store(outputs)
    verdicts = store.open(*label.split("/"), ArbitrationVerdicts)
    mine = {arm["seed"]: arm["validation"] for arm in verdicts.rules if arm["rule"] == "cospec"}
    shipped = verdicts.shipped
    assert shipped.rule in ("rl", "warm") and math.isfinite(shipped.threshold)
    assert mine[shipped.seed]["threshold"] == shipped.threshold
    assert mine[shipped.seed]["bound"] == max(point["bound"] for point in mine.values())
