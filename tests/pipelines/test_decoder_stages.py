"""Stages around decoders: question files, tasks whose answers are decoded."""

import json

import pytest

from effllm.modules.errors import ConfigError, DataError
from effllm.pipelines.artifacts.data import Prompts
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.commands.composing import compose, resolve
from effllm.pipelines.engine.executor import build_stages
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.identity import recipe_digest


def test_a_moved_question_file_is_the_same_prompt_set(execute, store, tmp_path):
    def pipeline(path):
        overrides = ["prompts@pipeline.prompts=mt_bench", f"pipeline.prompts.source.path={path}"]
        composed, _ = resolve(compose(["paper=fly", "scale=smoke", *overrides]))
        return {"prompts": composed["prompts"]}

    rows = [{"category": f"c{n % 2}", "turns": [f"question {n}"]} for n in range(8)]
    file, moved = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert execute(pipeline(file)) == {"prompts": "ran"}
    (one,) = build_graph(pipeline(file), store)
    prompts = store.open(one.stage, one.digest, Prompts).prompts()
    assert sorted(prompt.group for prompt in prompts) == ["c0", "c0", "c1", "c1"]
    file.rename(moved)
    assert execute(pipeline(moved)) == {"prompts": "hit"}
    moved.write_text("{}\n")
    with pytest.raises(DataError, match=r"prompts: b\.jsonl, line 1"):
        execute(pipeline(moved))


def accuracy_pipeline(*overrides):
    pipeline, _ = resolve(compose(["paper=fly_accuracy", "scale=smoke", *overrides]))
    for one in pipeline.values():
        if "decoder" in one:
            one["limit"] = 4
    return pipeline


def test_exact_decoders_give_the_answers_of_plain_decoding(execute, store, monkeypatch):
    from effllm.modules.decoding.answering import DecodingLM

    pipeline = accuracy_pipeline(
        "decoder@pipeline.lookup_fly.decoder=draft",
        "+draft@pipeline.lookup_fly.decoder.draft=first_layers",
        "pipeline.lookup_fly.decoder.draft.layers=1",
    )
    pipeline["draft"] = pipeline.pop("lookup_fly")
    graph = {one.name: one for one in build_graph(pipeline, store)}
    decode, decoded = DecodingLM._decode, []

    def stop(self, request):
        if len(decoded) == 2:
            raise KeyboardInterrupt
        decoded.append(request.doc_id)
        return decode(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(DecodingLM, "_decode", stop)
        with pytest.raises(KeyboardInterrupt):
            execute(pipeline, until="lookup")
        decoded.append("more")

        def count(self, request):
            decoded.append(request.doc_id)
            return decode(self, request)

        patch.setattr(DecodingLM, "_decode", count)
        assert execute(pipeline, until="lookup")["lookup"] == "resumed"
    assert decoded == [0, 1, "more", 2, 3]
    execute(pipeline)
    folders = {name: store.folder("evaluate_generation", graph[name].digest) for name in graph}
    answers, passes = {}, {}
    for name in ("plain", "lookup", "draft"):
        lines = (folders[name] / "answers.jsonl").read_text().split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
        answers[name] = [(row["task"], row["id"], row["text"], row["tokens"]) for row in rows]
        passes[name] = sum(row["rounds"] for row in rows)
        predicted = store.open("evaluate_generation", graph[name].digest, Predictions).rows()
        assert [row["id"] for row in predicted] == [0, 1, 2, 3]
    assert answers["plain"] == answers["lookup"] == answers["draft"]
    assert passes["lookup"] < passes["plain"]
    report = store.folder(graph["report"].stage, graph["report"].digest)
    text = (report / "report.md").read_text()
    assert "No verdicts at smoke scale." in text
    for decoder in ("Prompt lookup", "First 1 of 2 layers"):
        line = next(one for one in text.splitlines() if one.startswith(f"| {decoder}"))
        assert "| 4 |" in line  # the same texts


def test_tasks_made_before_kinds_could_be_chosen_keep_their_digest(store):
    composed, _ = resolve(compose(["paper=sds", "scale=smoke"]))
    pipeline = {"task_text": composed["task_text"], "tasks": composed["tasks"]}
    assert pipeline["tasks"]["kinds"] == ["lastword", "continuation"]

    def tasks(**changes):
        changed = {**pipeline, "tasks": {**pipeline["tasks"], **changes}}
        return next(one for one in build_graph(changed, store) if one.name == "tasks")

    config = {
        k: v for k, v in pipeline["tasks"].items() if k not in ("_target_", "inputs", "kinds")
    }
    text = next(one for one in build_graph(pipeline, store) if one.name == "task_text")
    before = recipe_digest(
        stage="BuildTasks",
        version=1,
        parts={},
        config=config,
        volatile=(),
        defaults={},
        inputs={"text": text.digest},
        sources={},
        machine={},
    )
    assert tasks().digest == before != tasks(kinds=["recall"]).digest
    with pytest.raises(ConfigError, match="kinds: expected some of lastword.*found"):
        build_stages([tasks(kinds=["riddle"])])
