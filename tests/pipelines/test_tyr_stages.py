"""Týr's stages on tiny models: stopped anywhere they end the same, and refuse what does not fit."""

import io
import itertools
import json
import os
import shutil
import signal

import pytest
import torch
from rich.console import Console

from effllm.modules.errors import ArtifactError, ConfigError, DataError
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.decoding import load_draft
from effllm.pipelines.artifacts.structural import Allocation, SupernetFiles
from effllm.pipelines.commands.composing import compose, resolve
from effllm.pipelines.engine.display import Display
from effllm.pipelines.engine.executor import Run
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.planning import Options
from effllm.pipelines.engine.store import Store
from effllm.pipelines.engine.tracking import NoLogger


def tyr_pipeline(*overrides):
    """One sparsity without measurements: supernet, search, export, a baseline, a second round."""
    pipeline, _ = resolve(compose(["paper=tyr_long", "scale=smoke", *overrides]))
    kept = ("base", "calibration_text", "calibration")
    scope = ("supernet", "uniform", "search", "searched", "flap", "supernet_2", "search_2",
             "searched_2")  # fmt: skip
    return {
        **{name: pipeline[name] for name in kept},
        "s50": {name: pipeline["s50"][name] for name in scope},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with all of it done without interruption."""
    store = Store(tmp_path_factory.mktemp("tyr"))
    pipeline = tyr_pipeline()
    graph = build_graph(pipeline, store)
    display = Display(Console(file=io.StringIO()))
    labels = {"paper": "tyr", "scale": "smoke"}
    Run(graph, store, store.root / "run", labels, NoLogger(), display, Options()).execute()
    return store, graph, pipeline


def instance(graph, name):
    return next(one for one in graph if one.name == f"s50.{name}")


def open_as(store, graph, name, kind):
    one = instance(graph, name)
    return store.open(one.stage, one.digest, kind)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
@pytest.mark.parametrize("end", ["interrupt", "kill"])
@pytest.mark.parametrize("name", ["supernet", "search", "search_2"])
def test_a_stopped_stage_ends_with_the_same_bytes(name, end, finished, execute, store, monkeypatch):
    from effllm.pipelines.stage import StageContext

    done, graph, pipeline = finished
    one = instance(graph, name)
    shutil.copytree(done.artifacts, store.artifacts)
    shutil.rmtree(store.folder(one.stage, one.digest))
    # Behind the first block of two, and in the middle of a text that generations share.
    method, last = ("save_progress", 4) if name == "supernet" else ("save_rows", 3)
    save, saved = getattr(StageContext, method), []

    def stop(self, *arguments):
        if len(saved) == last and end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(saved) == last:
            raise KeyboardInterrupt
        save(self, *arguments)
        saved.append(arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StageContext, method, stop)
        if end == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                execute(pipeline, until=one.name)
        else:
            child = os.fork()  # a process of its own dies without any clean-up
            if child == 0:
                execute(pipeline, until=one.name)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert execute(pipeline, until=one.name)[one.name] == "resumed"
    again, before = (s.manifest(one.stage, one.digest)["outputs"] for s in (store, done))
    assert again == before


def test_full_passes_and_other_batches_find_the_same_winner(finished, execute, store):
    done, graph, _ = finished
    shutil.copytree(done.artifacts, store.artifacts)
    one = instance(graph, "search")
    shutil.rmtree(store.folder(one.stage, one.digest))
    other = tyr_pipeline(
        "budget.structural.search_resume_passes=false", "pipeline.s50.search.micro_batch_size=1"
    )
    execute(other, until=one.name)
    winners = [open_as(where, graph, "search", Allocation).removed() for where in (done, store)]
    assert winners[0] == winners[1]
    metrics = [where.manifest(one.stage, one.digest)["metrics"] for where in (done, store)]
    # With two blocks resuming saves nothing; that it does with more is tested on the fitness.
    assert metrics[0]["full_block_evaluations"] == metrics[1]["full_block_evaluations"]


def test_every_model_removes_the_same_budget(finished):
    store, graph, _ = finished
    for name in ("uniform", "searched", "searched_2", "flap"):
        one = instance(graph, name)
        metrics = store.manifest(one.stage, one.digest)["metrics"]
        assert (metrics["attention_removed"], metrics["ffn_removed"]) == (4, 128)
        assert metrics["attention_sparsity"] == metrics["ffn_sparsity"] == 0.5
        model = open_as(store, graph, name, Checkpoint).load_model("float32")
        assert sum(value.numel() for value in model.parameters()) == metrics["parameters"]
        assert metrics["parameters"] < metrics["dense_parameters"]


@torch.no_grad()
def test_the_exported_model_is_the_searched_one(finished):
    """A port once lost its repaired weights on the way out."""
    from effllm.modules.structural.fitness import LevelModel

    store, graph, _ = finished
    base = next(one for one in graph if one.name == "base")
    dense = store.open(base.stage, base.digest, Checkpoint).load_model("float32")
    supernet = open_as(store, graph, "supernet", SupernetFiles).open()
    removed = open_as(store, graph, "search", Allocation).removed()
    levels = LevelModel(dense, supernet)
    levels.install(levels.space.state([removed[one.name] for one in supernet.layers]))
    exported = open_as(store, graph, "searched", Checkpoint).load_model("float32")
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(exported(ids).logits, dense(ids).logits, rtol=1e-5, atol=1e-5)


def test_the_history_says_how_the_search_began(finished):
    store, graph, _ = finished
    guided = {
        name: open_as(store, graph, name, Checkpoint).history[-1]["guided"]
        for name in ("uniform", "searched")
    }
    assert guided == {"uniform": 0, "searched": 1}


def test_the_second_round_starts_at_the_winner_with_half_the_step(finished):
    store, graph, _ = finished
    winner = open_as(store, graph, "search", Allocation).removed()
    first, second = (
        open_as(store, graph, name, SupernetFiles).open() for name in ("supernet", "supernet_2")
    )
    assert second.centre == winner
    for supernet, step in ((first, 16), (second, 8)):
        levels = supernet.removals["block-000-ffn"]
        assert {b - a for a, b in itertools.pairwise(levels)} == {step}


def test_an_allocation_of_another_supernet_is_refused(finished, execute, store):
    done, _, pipeline = finished
    shutil.copytree(done.artifacts, store.artifacts)
    mixed = {**pipeline["s50"]["searched_2"]}
    mixed["inputs"] = {**mixed["inputs"], "allocation": ["search"]}
    pipeline = {**pipeline, "s50": {**pipeline["s50"], "searched_2": mixed}}
    with pytest.raises(ArtifactError, match="was searched in build_supernet/.*, not in"):
        execute(pipeline, until="s50.searched_2")


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_a_damaged_supernet_is_refused_before_the_search(damage, finished, execute, store):
    done, graph, pipeline = finished
    shutil.copytree(done.artifacts, store.artifacts)
    search, supernet = instance(graph, "search"), instance(graph, "supernet")
    shutil.rmtree(store.folder(search.stage, search.digest))
    file = store.folder(supernet.stage, supernet.digest) / "block-001-ffn.safetensors"
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match="block-001-ffn.safetensors"):
        execute(pipeline, until=search.name)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ["budget.structural.search_stage_tokens=[64,9999999]"],
            DataError,
            "judges on 9999999 tokens",
        ),
        (["pipeline.s50.supernet.sparsity=1.0"], ConfigError, "sparsity.* expected less than 1"),
        (["pipeline.s50.supernet.sparsity=0.99"], ConfigError, "removes all 8 units"),
        (
            ["pipeline.s50.supernet.attention_unit=row"],
            ConfigError,
            "'head' or 'kv_group'",
        ),
        (["pipeline.s50.supernet.reach=-1"], ConfigError, "reach: expected .* 0, found -1"),
        (["budget.structural.search_survivors=[3,2]"], ConfigError, "survivors fall"),
        (["pipeline.s50.search.divergence=ppl"], ConfigError, "expected 'full', 'topk_renorm' or"),
        (
            [
                "unit_budget@pipeline.s50.search.budget=parameters",
                "pipeline.s50.search.budget.limit=1",
            ],
            ConfigError,
            "starts at parameters .*, outside",
        ),
        (
            ["pipeline.s50.supernet.sparsity=0.375", "pipeline.s50.searched.layout=stock"],
            ConfigError,
            "layout stock: needs equal blocks",
        ),  # three of eight heads: no even distribution exists
        (["pipeline.s50.searched.layout=onnx"], ConfigError, "expected 'compact' or 'stock'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(overrides, error, message, execute):
    with pytest.raises(error, match=message) as caught:
        execute(tyr_pipeline(*overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cost", ["parameters", "memory", "latency"])
def test_other_budgets_are_kept(cost, execute, store, monkeypatch):
    """The winner's cost is within the band below that of the start, also after a guided step."""
    from effllm.modules.structural.budgets import Costs
    from effllm.modules.structural.search import Space

    tables = []
    of = Costs.build

    def build(self, levels, centre, known=None):
        tables.append(of(self, levels, centre, known))
        return tables[-1]

    monkeypatch.setattr(Costs, "build", build)
    pipeline = tyr_pipeline(
        f"unit_budget@pipeline.s50.search.budget={cost}", "budget.structural.search_guided=2"
    )
    assert execute(pipeline, until="s50.searched")["s50.searched"] == "ran"
    graph = build_graph(pipeline, store)
    removed = open_as(store, graph, "search", Allocation).removed()
    supernet = open_as(store, graph, "supernet", SupernetFiles).open()
    layers = supernet.layers
    space = Space(layers, [supernet.removals[one.name] for one in layers])
    state = space.state([removed[one.name] for one in layers])
    checkpoint = open_as(store, graph, "searched", Checkpoint)
    assert checkpoint.history[-1]["budget"] == cost
    (budget,) = tables
    assert (1 - budget.band) * budget.limit <= budget.total(state) <= budget.limit


def test_whole_groups_at_half_the_units_load_as_a_stock_model(execute, store):
    pipeline = tyr_pipeline(
        "pipeline.s50.supernet.attention_unit=kv_group", "pipeline.s50.uniform.layout=stock"
    )
    execute(pipeline, until="s50.uniform")
    one = instance(build_graph(pipeline, store), "uniform")
    checkpoint = store.open(one.stage, one.digest, Checkpoint)
    config = json.loads((checkpoint.path / "config.json").read_text())
    assert config["model_type"] == "llama" and "auto_map" not in config
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert checkpoint.load_model("float32").config.intermediate_size == 64


@pytest.mark.parametrize("family", ["opt", "qwen2", "qwen3", "mistral"])
def test_other_families_go_through(family, execute, store):
    """Without grouped heads and with biases (opt), untied, with head norms and sliding windows."""
    pipeline = tyr_pipeline(f"model.family={family}")
    assert execute(pipeline, until="s50.searched")["s50.searched"] == "ran"


def test_fused_projections_are_refused(execute):
    from effllm.modules.errors import UnsupportedModelError

    with pytest.raises(UnsupportedModelError, match="fused projections"):
        execute(tyr_pipeline("model.family=gpt2"), until="s50.supernet")


@pytest.mark.parametrize("name", ["supernet", "flap"])
def test_a_family_that_cannot_be_exported_is_refused_before_the_work(name, execute, monkeypatch):
    from effllm.modules.calibration.stream import BlockStream
    from effllm.modules.errors import UnsupportedModelError
    from effllm.modules.structural import compact

    monkeypatch.delitem(compact._FAMILIES, "llama")
    monkeypatch.setattr(BlockStream, "collect", None)
    with pytest.raises(UnsupportedModelError, match="llama: no compact form"):
        execute(tyr_pipeline(), until=f"s50.{name}")


def test_more_timed_tokens_than_the_context_are_refused(execute):
    settings = ["paper=tyr", "scale=smoke", "budget.structural.speed_prompt_tokens=1000000"]
    pipeline, _ = resolve(compose([*settings, "pipeline.speed.inputs.models=[]"]))
    scope = ("base", "test_text", "test", "speed")
    with pytest.raises(
        ConfigError, match=r"prompt_tokens \+ new_tokens: 1000004 tokens are more than"
    ):
        execute({name: pipeline[name] for name in scope})


def test_the_timed_tokens_of_paper_scale_fit_its_model():
    budget = compose(["paper=tyr", "scale=paper"]).budget
    positions = 2048  # of OPT
    assert budget.structural.speed_prompt_tokens + budget.structural.speed_new_tokens <= positions


def test_few_tokens_are_warned_about(finished, execute, store):
    done, graph, _ = finished
    one = instance(graph, "supernet")
    assert not done.manifest(one.stage, one.digest)["warnings"]
    pipeline = tyr_pipeline("budget.structural.sequences=4")
    execute(pipeline, until="s50.supernet")
    one = instance(build_graph(pipeline, store), "supernet")
    (warning,) = store.manifest(one.stage, one.digest)["warnings"]
    assert "tokens" in warning


@torch.no_grad()
def test_a_compact_model_drafts_for_the_dense_one(finished):
    """Its own tokens, and the target's text unchanged."""
    from effllm.modules.decoding.proposers.base import Nothing
    from effllm.modules.decoding.proposers.draft import DraftModel
    from effllm.modules.decoding.session import Session
    from effllm.modules.decoding.verifiers.exact import Exact
    from effllm.modules.inference.runner import ModelRunner

    store, graph, _ = finished
    base = next(one for one in graph if one.name == "base")
    dense = store.open(base.stage, base.digest, Checkpoint).load_model("float32")
    draft = load_draft(open_as(store, graph, "searched", Checkpoint), "float32")
    prompt = list(range(40, 60))
    plain = Session(ModelRunner(dense), Nothing(), Exact()).generate(prompt, 24)
    proposer = DraftModel(ModelRunner(draft), vocabulary=259, tokens=4)
    drafted = Session(ModelRunner(dense), proposer, Exact()).generate(prompt, 24)
    assert drafted.tokens == plain.tokens
    assert sum(one.drafted for one in drafted.rounds) > 0
