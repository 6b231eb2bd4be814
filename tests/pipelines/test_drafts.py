"""Traces and distilled drafts: interrupted anywhere they end with the same files."""

import pytest
import torch
from interrupting import interrupt

from effllm.modules import training
from effllm.modules.drafting import traces
from effllm.modules.errors import DataError
from effllm.modules.modeling import checkpoints
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.decoding import Traces, load_draft
from effllm.pipelines.commands.composing import compose, resolve
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.store import Store

STAGES = ("base", "trace_text", "traces", "draft")
KEYS = ("tokens", "prompt_lengths", "likely", "probabilities")


def draft_pipeline(*overrides):
    pipeline, _ = resolve(compose(["paper=fly", "scale=smoke", *overrides]))
    return {name: pipeline[name] for name in STAGES}


def payload(store, graph, name):
    one = next(one for one in graph if one.name == name)
    return store.manifest(one.stage, one.digest)["outputs"]


def test_stops_at_a_batch_and_a_step_change_nothing(execute, store, monkeypatch, tmp_path):
    pipeline = draft_pipeline("pipeline.draft.batch_texts=4", "trainer.every_n_train_steps=1")
    whole = Store(tmp_path / "whole")
    execute(pipeline, store=whole)
    stops = (
        (traces, "write_greedily", 2, "traces"),
        (training._Report, "on_train_batch_end", 3, "draft"),
    )
    interrupt(execute, pipeline, stops, monkeypatch)
    outcomes = execute(pipeline)
    assert outcomes["draft"] == "resumed"
    graph = build_graph(pipeline, store)
    for name in ("traces", "draft"):
        assert payload(store, graph, name) == payload(whole, graph, name)


def test_traces_hold_prompts_and_what_the_target_says_after_them(execute, store):
    pipeline = draft_pipeline()
    execute(pipeline, until="traces")
    graph = {one.name: one for one in build_graph(pipeline, store)}
    found = store.open(graph["traces"].stage, graph["traces"].digest, Traces).load()
    model = store.open(graph["base"].stage, graph["base"].digest, Checkpoint).load_model("float32")
    assert len(found["tokens"]) == 16
    for text, length, likely, chances in list(zip(*map(found.get, KEYS), strict=True))[:4]:
        law = model(text[None]).logits[0].softmax(dim=-1)
        assert torch.equal(text[length:], law[length - 1 : -1].argmax(dim=-1))
        torch.testing.assert_close(chances[:-1], law.gather(-1, likely)[:-1])
        assert not chances[-1].any()


def test_a_draft_predicts_only_its_own_tokens_and_stays_an_ordinary_model(execute, store):
    pipeline = draft_pipeline("pipeline.draft.vocabulary=30", "pipeline.draft.layers=[1]")
    execute(pipeline)
    graph = {one.name: one for one in build_graph(pipeline, store)}
    draft = store.open(graph["draft"].stage, graph["draft"].digest, Checkpoint)
    plain, reduced = draft.load_model("float32"), load_draft(draft, "float32")
    assert plain.config.num_hidden_layers == 1
    head = reduced.get_output_embeddings()
    assert head.weight.shape[0] == len(head.token_ids) <= 30
    assert (plain.get_output_embeddings().weight[head.token_ids] == head.weight).all()
    assert draft.history[-1]["stage"] == "distill_draft"


def test_a_target_may_be_spread_over_devices(execute, store, monkeypatch):
    pipeline = draft_pipeline()
    execute(pipeline, until="base")
    base = build_graph({"base": pipeline["base"]}, store)[0]
    checkpoint = store.open(base.stage, base.digest, Checkpoint)
    load, asked = checkpoints.AutoModelForCausalLM.from_pretrained, []

    def noted(*args, **kwargs):
        asked.append(kwargs["device_map"])
        return load(*args, **kwargs)

    monkeypatch.setattr(checkpoints.AutoModelForCausalLM, "from_pretrained", noted)
    texts = []
    for device_map in (None, "auto"):
        model = checkpoint.load_model("float32", device_map=device_map)
        texts.append(traces.write_greedily(model, torch.arange(1, 9)[None], 6, frozenset(), 1)[0])
    assert texts[0] == texts[1] and asked == [None, "auto"]


def test_too_few_traces_are_refused(execute):
    with pytest.raises(DataError, match="leave 1 to train on and 0 to measure on"):
        execute(draft_pipeline("budget.decoding.trace_prompts=1"))
