"""FLy at smoke scale and `effllm generate`, through the command line."""

import json
import re
import shutil

import pytest
from said import read_report

from effllm.pipelines.cli import main

EXACT = ("plain", "generate_lookup", "generate_assisted", "lookup")
EXACT += ("draft", "draft_tree", "draft_mla", "draft_long")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fly")
    assert main(["run", "paper=fly", "scale=smoke", "logger=none", f"paths.outputs={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def bench_rows(outputs):
    file = next((outputs / "artifacts" / "decode_bench").glob("*/predictions.jsonl"))
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_arm_decodes_every_prompt(bench_rows):
    arms = {row["set"] for row in bench_rows}
    assert {"plain", "generate", "generate_lookup", "lookup", "lookup_fly", "draft_fly"} <= arms
    prompts = {row["id"] for row in bench_rows}
    assert {prompt.split("-")[0] for prompt in prompts} == {
        "continue",
        "summarise",
        "quote",
        "recall",
    }
    assert len(bench_rows) == len(arms) * len(prompts)


def test_exact_arms_give_the_text_of_generate(bench_rows):
    texts = {(row["set"], row["id"]): row["output"] for row in bench_rows}
    for (arm, prompt), output in texts.items():
        if arm in EXACT:
            assert output == texts["generate", prompt]


def test_accounts_of_our_arms_add_up(bench_rows):
    for row in bench_rows:
        if "rounds" in row:
            assert row["emitted"] == row["tokens"] - 1
            assert row["accepted"] == sum(row["accepted_counts"])
            assert row["loosened"] == sum(event["loosened"] for event in row["events"])
            parts = sum(row[f"{part}_seconds"] for part in ("draft", "verify", "host"))
            assert parts <= row["decode_seconds"] <= row["seconds"]
            if row["set"] in EXACT:
                assert row["loosened"] == 0 and row["first_difference"] is None


def test_the_report_marks_what_is_lossy_and_what_is_the_papers(outputs):
    folder = outputs / "reports" / "fly-smoke"
    page = (folder / "index.html").read_text()
    assert re.search(r"Draft model of \S+M with lookup inside, K=8: FLy \(W=3, gate 0.3\)", page)
    assert "approximation across blocks" in " ".join(page.split())
    rows = read_report(folder, "acceptance", "replay")
    lossless = {row["method"]: row["metrics"]["lossless"] for row in rows}
    assert lossless["lookup"] and not lossless["lookup_fly"]


def test_the_replay_gives_the_tau_of_the_benchmark(outputs, bench_rows, tmp_path):
    """Exact verification at the benchmark's K, walked over blocks recorded with a longer one."""
    shutil.copytree(outputs / "artifacts", tmp_path / "artifacts")
    shutil.rmtree(tmp_path / "artifacts" / "replay_blocks")  # made on held-out prompts
    arguments = ["run", "paper=fly", "scale=smoke", "logger=none", f"paths.outputs={tmp_path}"]
    assert main([*arguments, "pipeline.blocks.inputs.prompts=prompts", "execute.until=replay"]) == 0
    file = next((tmp_path / "artifacts" / "replay_blocks").glob("*/replay.jsonl"))
    swept = [json.loads(line) for line in file.read_text().splitlines()]
    for benched, arm, tokens in (("lookup", "lookup", 12), ("draft_long", "draft", 8)):
        mine = [row for row in bench_rows if row["set"] == benched]
        tau = sum(row["emitted"] for row in mine) / sum(row["rounds"] for row in mine)
        (row,) = [r for r in swept if (r["arm"], r["rule"], r["tokens"]) == (arm, "exact", tokens)]
        assert row["tau"]["value"] == pytest.approx(tau)
        lossy = [r for r in swept if r["arm"] == arm and r["loosened"]]
        assert lossy and all(r["tau_over_exact"]["high"] >= 1 for r in lossy)


def test_an_interrupted_recording_goes_on_at_the_next_prompt(outputs, tmp_path, monkeypatch):
    from effllm.modules.decoding.session import Session

    shutil.copytree(outputs / "artifacts", tmp_path / "artifacts")
    (kept,) = (tmp_path / "artifacts" / "record_blocks").glob("*/blocks.jsonl")
    whole = kept.read_text()
    shutil.rmtree(tmp_path / "artifacts" / "record_blocks")
    arguments = ["run", "paper=fly", "scale=smoke", "logger=none", f"paths.outputs={tmp_path}"]
    generate, calls = Session.generate, []

    def stop(session, *others, **more):
        calls.append(session)
        if len(calls) == 6:  # the second arm of the third prompt
            raise KeyboardInterrupt
        return generate(session, *others, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "generate", stop)
        assert main([*arguments, "execute.until=blocks"]) == 130
    calls.clear()

    def count(session, *others, **more):
        calls.append(session)
        return generate(session, *others, **more)

    monkeypatch.setattr(Session, "generate", count)
    assert main([*arguments, "execute.until=blocks"]) == 0
    assert len(calls) == 2 * 6  # eight prompts, two were kept
    (again,) = (tmp_path / "artifacts" / "record_blocks").glob("*/blocks.jsonl")
    assert again.read_text() == whole


def test_a_replay_beyond_what_was_recorded_is_refused(outputs, capsys):
    arguments = ["run", "paper=fly", "scale=smoke", "logger=none", f"paths.outputs={outputs}"]
    wanted = ["pipeline.replay.tokens=[4,16]", "execute.until=replay"]
    assert main([*arguments, *wanted]) == 1
    assert "recorded with K = 12" in capsys.readouterr().err


def test_an_interrupted_benchmark_goes_on_at_the_next_prompt(outputs, tmp_path, monkeypatch):
    from effllm.pipelines.stages.decoding import decode_bench

    shutil.copytree(outputs / "artifacts", tmp_path / "artifacts")
    shutil.rmtree(tmp_path / "artifacts" / "decode_bench")
    arguments = ["run", "paper=fly", "scale=smoke", "logger=none", f"paths.outputs={tmp_path}"]
    describe, prompts = decode_bench._describe, []

    def stop(found, prompt, *others):
        prompts.append(prompt.id)
        if len(prompts) == 3:
            raise KeyboardInterrupt
        return describe(found, prompt, *others)

    with monkeypatch.context() as patch:
        patch.setattr(decode_bench, "_describe", stop)
        assert main([*arguments, "execute.until=bench"]) == 130

    def count(found, prompt, *others):
        prompts.append(prompt.id)
        return describe(found, prompt, *others)

    monkeypatch.setattr(decode_bench, "_describe", count)
    assert main([*arguments, "execute.until=bench"]) == 0
    assert len(prompts) == 3 + 6  # eight prompts: two kept, the third and the rest decoded
    manifest = json.loads(
        next((tmp_path / "artifacts" / "decode_bench").glob("*/manifest.json")).read_text()
    )
    assert manifest["timing"]["resumed"]


def test_an_interruption_while_decoding_is_not_recorded_as_an_output(
    outputs, monkeypatch, tmp_path
):
    from effllm.modules.decoding.proposers.lookup import PromptLookup

    shutil.copytree(outputs / "artifacts", tmp_path / "artifacts")
    shutil.rmtree(tmp_path / "artifacts" / "decode_bench")

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(PromptLookup, "propose", stop)
    arguments = ["run", "paper=fly", "scale=smoke", "logger=none", f"paths.outputs={tmp_path}"]
    assert main([*arguments, "execute.until=bench"]) == 130
    assert not list(tmp_path.glob("work/decode_bench-*/progress/rows.jsonl"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["decoder=plain"],
        ["decoder=lookup"],
        ["decoder=fly"],
        ["decoder=margin"],
        ["decoder=typical"],
        ["decoder=draft", "draft=first_layers", "draft.layers=1"],
        ["decoder=draft_fly", "draft=first_layers", "draft.layers=1"],
    ],
    ids=lambda one: one[0],
)
def test_generate_streams_text_and_sums_up(overrides, tmp_path, capsys):
    common = ["model=tiny_llama", "dtype=float32", f"paths.outputs={tmp_path}", "max_new_tokens=12"]
    assert main(["generate", "hello, 'you'", *common, *overrides]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip("\n") and "tokens per pass" in shown.err
    lossless = overrides[0] in ("decoder=plain", "decoder=lookup", "decoder=draft")
    assert ("not lossless" in shown.err) != lossless
