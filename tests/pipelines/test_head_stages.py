"""Drafting heads through the pipeline: interrupted anywhere, damaged, or given another target."""

import json

import pytest
import torch
from interrupting import interrupt

from effllm.modules import training
from effllm.modules.errors import ArtifactError, DataError
from effllm.modules.heads import states
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.heads import Heads, HeadScores, HiddenStates
from effllm.pipelines.commands.composing import compose, resolve
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.store import Store

TEXTS = ("base", "trace_text", "heldout_text", "test_text", "traces", "heldout_traces")
TEXTS += ("test_traces", "states", "heldout_states", "test_states")


def head_pipeline(*overrides, arm="amphista_0"):
    pipeline, _ = resolve(compose(["paper=amphista", "scale=smoke", *overrides]))
    return {name: pipeline[name] for name in (*TEXTS, arm)}


def opened(store, pipeline, name, kind):
    one = next(one for one in build_graph(pipeline, store) if one.name == name)
    return store.open(one.stage, one.digest, kind)


def test_stops_at_a_shard_and_a_step_change_nothing(execute, store, monkeypatch, tmp_path):
    pipeline = head_pipeline("trainer.every_n_train_steps=1")
    whole = Store(tmp_path / "whole")
    execute(pipeline, store=whole)
    stops = (
        (states, "last_hidden", 3, "states"),
        (training._Report, "on_train_batch_end", 2, "amphista_0.heads"),
    )
    interrupt(execute, pipeline, stops, monkeypatch)
    outcomes = execute(pipeline)
    assert outcomes["amphista_0.heads"] == "resumed"
    for name, kind in (("states", HiddenStates), ("amphista_0.heads", Heads)):
        mine, other = (opened(one, pipeline, name, kind) for one in (store, whole))
        assert mine.manifest["outputs"] == other.manifest["outputs"]


def test_stored_states_are_those_of_a_fresh_pass(execute, store):
    pipeline = head_pipeline()
    execute(pipeline, until="states")
    found = opened(store, pipeline, "states", HiddenStates)
    model = opened(store, pipeline, "base", Checkpoint).load_model("float32")
    assert len(list(found.path.glob("shard-*"))) > 1
    texts = found.texts()
    for text, tokens in enumerate(texts.all_tokens()):
        fresh = model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
        torch.testing.assert_close(texts.batch([text]).hidden[0], fresh, atol=1e-5, rtol=1e-5)
    embedding, head = found.weights()
    assert torch.equal(embedding, model.get_input_embeddings().weight)
    assert torch.equal(head, model.get_output_embeddings().weight)


def test_heads_come_back_as_they_were_trained(execute, store):
    pipeline = head_pipeline()
    execute(pipeline)
    heads = opened(store, pipeline, "amphista_0.heads", Heads)
    drafter, token_ids = heads.load()
    assert heads.about["class"] == "Amphista" and drafter.heads == 4 and not drafter.training
    assert len(token_ids) == heads.manifest["metrics"]["vocabulary"]
    scores = opened(store, pipeline, "amphista_0.scores", HeadScores)
    rows, metrics = scores.rows(), scores.manifest["metrics"]
    positions = sum(row["positions"] for row in rows)
    assert positions == metrics["test/positions"]
    for nodes, tree in scores.trees().items():
        assert len(tree) <= nodes
        tau = 1 + sum(row["accepted"][str(nodes)] for row in rows) / positions
        assert tau == pytest.approx(metrics[f"test/tau/{nodes}"])
    right = sum(row["top1"][0] for row in rows) / positions
    assert right == pytest.approx(metrics["test/top1/1"])


def test_heads_of_another_target_are_refused(execute, store):
    pipeline = head_pipeline()
    execute(pipeline)
    heads = opened(store, pipeline, "amphista_0.heads", Heads)
    target = opened(store, pipeline, "states", HiddenStates).target
    heads.require_target(target)
    for part in ("weights", "tokenizer"):
        with pytest.raises(ArtifactError, match=f"another target.*its {part} is"):
            heads.require_target(target | {part: "0" * 64})


def test_states_of_two_precisions_are_not_mixed(execute):
    pipeline = head_pipeline("pipeline.heldout_states.dtype=bfloat16")
    with pytest.raises(ArtifactError, match="another target.*its dtype is bfloat16"):
        execute(pipeline)


def test_a_damaged_shard_is_found_before_it_is_read(execute, store):
    pipeline = head_pipeline()
    execute(pipeline, until="states")
    file = next(opened(store, pipeline, "states", HiddenStates).path.glob("shard-*"))
    file.write_bytes(file.read_bytes()[:-16])
    with pytest.raises(ArtifactError, match=r"states\) is damaged.*refresh=\[states\]"):
        execute(pipeline)


def test_texts_that_only_loop_are_refused(execute):
    pipeline = head_pipeline("pipeline.states.loop_tokens=1", "pipeline.states.least_tokens=24")
    with pytest.raises(DataError, match="none of 24 texts has 24 tokens of answer"):
        execute(pipeline, until="states")


def test_states_that_do_not_fit_the_disk_are_refused_with_their_size(execute, monkeypatch):
    from effllm.pipelines.stages.heads import cache_hidden_states

    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(cache_hidden_states.shutil, "disk_usage", lambda path: full)
    with pytest.raises(ArtifactError, match=r"take 0\.0 GB, the disk has 0\.0"):
        execute(head_pipeline(), until="states")


def test_a_loss_without_terms_is_refused(execute):
    pipeline = head_pipeline(
        "pipeline.amphista_0.heads.ce_weight=0.0", "pipeline.amphista_0.heads.kd_weight=0.0"
    )
    with pytest.raises(Exception, match="ce_weight and kd_weight are both 0"):
        execute(pipeline)


def test_the_subject_of_scores_is_written(execute, store):
    pipeline = head_pipeline(arm="medusa_token")
    execute(pipeline)
    scores = opened(store, pipeline, "medusa_token.scores", HeadScores)
    assert scores.about["class"] == "MedusaToken"
    assert json.dumps(scores.about)
