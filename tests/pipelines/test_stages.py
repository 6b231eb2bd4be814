"""Real stages on tiny models: interrupted anywhere they end with the same artifact."""

import json
import os
import shutil
import signal

import pytest
import torch
from interrupting import interrupt

from effllm.modules.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    NumericalError,
    UnsupportedModelError,
)
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Corpus, Windows
from effllm.pipelines.commands.composing import compose, resolve
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.store import Store

BASE = "sparsegpt_2of4"


def sds_pipeline(*overrides, kept=("base", "calibration_text", "calibration", BASE)):
    """The SDS pipeline at smoke scale with one base pruner and no report."""
    pipeline, _ = resolve(compose(["paper=sds", "scale=smoke", *overrides]))
    return {name: pipeline[name] for name in kept}


def trimmed(pipeline):
    """Without the selection, which needs measurements."""
    pipeline[BASE] = {name: one for name, one in pipeline[BASE].items() if name != "select"}
    return pipeline


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A store with all SDS stages of one base done without interruption."""
    import io

    from rich.console import Console

    from effllm.pipelines.engine.display import Display
    from effllm.pipelines.engine.executor import Run
    from effllm.pipelines.engine.planning import Options
    from effllm.pipelines.engine.tracking import NoLogger

    store = Store(tmp_path_factory.mktemp("finished"))
    pipeline = trimmed(sds_pipeline())
    graph = build_graph(pipeline, store)
    display = Display(Console(file=io.StringIO()))
    labels = {"paper": "sds", "scale": "smoke"}
    Run(graph, store, store.root / "run", labels, NoLogger(), display, Options()).execute()
    return store, graph, pipeline


def payload(store, graph, name):
    one = next(one for one in graph if one.name == name)
    return store.manifest(one.stage, one.digest)["outputs"]


LONG = ["prune", "gram_2", "sds.redense", "sds.adjust"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
@pytest.mark.parametrize("end", ["interrupt", "kill"])
@pytest.mark.parametrize("name", LONG)
def test_a_stopped_stage_ends_with_the_same_bytes(name, end, finished, execute, store, monkeypatch):
    done, graph, pipeline = finished
    # Start from everything in front of the stage.
    one = next(one for one in graph if one.name == f"{BASE}.{name}")
    shutil.copytree(done.artifacts, store.artifacts)
    shutil.rmtree(store.folder(one.stage, one.digest))
    from effllm.pipelines.stage import StageContext

    save, saved = StageContext.save_progress, []

    def stop(self, label, tensors):
        if saved and end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if saved:
            raise KeyboardInterrupt
        save(self, label, tensors)
        saved.append(label)

    with monkeypatch.context() as patch:
        patch.setattr(StageContext, "save_progress", stop)
        if end == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                execute(pipeline, until=one.name)
        else:
            child = os.fork()  # a process of its own dies without any clean-up
            if child == 0:
                execute(pipeline, until=one.name)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(store.root.glob(f"work/*{one.digest[:12]}*/progress/*.safetensors"))
    assert not store.folder(one.stage, one.digest).exists()
    assert execute(pipeline, until=one.name)[one.name] == "resumed"
    assert payload(store, graph, one.name) == payload(done, graph, one.name)


def test_a_smaller_micro_batch_gives_the_same_masks(finished, execute, store):
    done, graph, _ = finished
    small = trimmed(sds_pipeline("budget.micro_batch_size=3"))
    digests = {one.name: one.digest for one in build_graph(small, store)}
    assert digests == {one.name: one.digest for one in graph}  # volatile: the same recipe
    execute(small, until=f"{BASE}.prune")
    one = next(one for one in graph if one.name == f"{BASE}.prune")
    masks = [s.open(one.stage, one.digest, Checkpoint).masks() for s in (done, store)]
    same = [float((masks[0][name] == masks[1][name]).float().mean()) for name in masks[0]]
    assert min(same) > 0.99  # rounding of the Gram matrix may move single near-ties


def test_grams_gathered_while_pruning_equal_those_of_a_pass_of_their_own(finished, execute, store):
    done, graph, pipeline = finished
    shutil.copytree(done.artifacts, store.artifacts)
    extra = {
        "_target_": "effllm.pipelines.stages.sparsity.collect_gram.CollectGram",
        "dtype": "float32",
        "micro_batch_size": 4,
        "inputs": {"model": f"{BASE}.prune", "windows": "calibration"},
    }
    execute({**pipeline, "own_pass": extra}, until="own_pass")
    one = next(
        one for one in build_graph({**pipeline, "own_pass": extra}, store) if one.name == "own_pass"
    )
    mine, taken = (
        store.manifest(one.stage, one.digest)["outputs"],
        payload(done, graph, f"{BASE}.gram"),
    )
    assert mine == taken


def test_a_model_pruned_without_grams_is_refused(finished, execute, store):
    done, _, pipeline = finished
    shutil.copytree(done.artifacts, store.artifacts)
    bare = {**pipeline[BASE]["prune"], "keep_gram": False}
    take = {
        "_target_": "effllm.pipelines.stages.sparsity.take_grams.TakeGrams",
        "inputs": {"model": "bare"},
    }
    with pytest.raises(ArtifactError, match="take: prune/.* keep_gram=true"):
        execute({**pipeline, "bare": bare, "take": take}, until="take")


def test_checkpoints_carry_their_history_and_masks(finished):
    store, graph, _ = finished
    one = next(one for one in graph if one.name == f"{BASE}.sds.adjust")
    checkpoint = store.open(one.stage, one.digest, Checkpoint)
    assert [step["stage"] for step in checkpoint.history] == [
        "import_model",
        "prune",
        "redense",
        "prune",
        "adjust",
    ]
    model = checkpoint.load_model("float32")
    from effllm.modules.modeling.blocks import prunable_layers

    for name, layer in prunable_layers(model).items():
        mask = checkpoint.masks()[name]
        assert int(mask.sum()) * 2 == mask.numel()
        assert not layer.read()[~mask].any()
    base = next(one for one in graph if one.name == "base")
    with pytest.raises(ArtifactError, match="has no masks"):
        store.open(base.stage, base.digest, Checkpoint).masks()


def test_no_redense_and_no_adjustment_give_the_first_pruning_bit_for_bit(finished, execute, store):
    """T2 = T3 = 0 and magnitude pruning: S3 = S1 (specification, test 10)."""
    done, _, _ = finished
    shutil.copytree(done.artifacts, store.artifacts)
    pipeline = trimmed(
        sds_pipeline(
            f"pruner@pipeline.{BASE}.prune.pruner=magnitude",
            "budget.sds.redense_steps=0",
            "budget.sds.adjust_steps=0",
            "budget.sds.refit_steps=0",
            f"pipeline.{BASE}.sds.redense.solver.space=raw",  # no rounding from rescaling
            f"pipeline.{BASE}.sds.adjust.solver.space=raw",
        )
    )
    execute(pipeline)
    graph = build_graph(pipeline, store)
    weights = [
        payload(store, graph, f"{BASE}.{name}")["model.safetensors"]["sha256"]
        for name in ("prune", "sds.adjust")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", ["sds.redense", "sds.adjust"])
def test_numerical_errors_name_block_and_layer(name, finished, execute, store, monkeypatch):
    from effllm.modules.sds import adjust, redense

    done, graph, pipeline = finished
    shutil.copytree(done.artifacts, store.artifacts)
    stage = f"{BASE}.{name}"
    one = next(one for one in graph if one.name == stage)
    shutil.rmtree(store.folder(one.stage, one.digest))

    def fail(*arguments):
        raise NumericalError("not finite")

    for solver in (adjust.HardThresholding, redense.ProximalGradient):
        monkeypatch.setattr(solver, "solve", fail)
    with pytest.raises(NumericalError, match=r"block 0, layer self_attn\.q_proj: not finite"):
        execute(pipeline, until=stage)


def test_sequential_and_literal_redense_run_and_resume(finished, execute, store, monkeypatch):
    done, _, _ = finished
    shutil.copytree(done.artifacts, store.artifacts)
    pipeline = trimmed(sds_pipeline())
    _, sections = resolve(compose(["paper=sds", "scale=smoke"]))
    start = f"{BASE}.prune"
    solver = pipeline[BASE]["sds"]["redense"]["solver"]
    common = {"dtype": "float32", "micro_batch_size": 4}
    inputs = {"dense": "base", "start": start, "windows": "calibration"}
    stages = "effllm.pipelines.stages.sds.redense"
    pipeline |= {
        "sequential": {
            "_target_": f"{stages}.RedenseSequential",
            "solver": solver,
            **common,
            "inputs": inputs,
        },
        "literal": {
            "_target_": f"{stages}.RedenseFromActivations",
            "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.001},
            "trainer": sections["trainer"],
            "epochs": 3,
            "batch_tokens": 64,
            "l1_weight": 0.0,
            "l2_weight": 0.0,
            "seed": 0,
            **common,
            "inputs": inputs,
        },
    }
    from effllm.modules import training
    from effllm.modules.calibration.stream import BlockStream

    for owner, function, name in (
        (BlockStream, "advance", "sequential"),
        (training._SaveLast, "on_train_epoch_end", "literal"),
    ):
        whole = Store(store.root / f"whole-{name}")
        shutil.copytree(store.artifacts, whole.artifacts)
        execute(pipeline, store=whole, until=name)
        interrupt(execute, pipeline, [(owner, function, 2, name)], monkeypatch)
        assert execute(pipeline, until=name)[name] == "resumed"
        graph = build_graph(pipeline, store)
        assert payload(store, graph, name) == payload(whole, graph, name)


def test_literal_and_gram_losses_have_the_same_gradient(problem):
    """Gram gradient = autograd gradient of the mini-batch loss, to 1e-5 in float32."""
    from effllm.modules.sds.regrowth import ActivationRegrowth

    weight, inputs, gram = (value.float() for value in problem())
    start = torch.zeros_like(weight)
    module = ActivationRegrowth(
        originals={"layer": weight},
        starts={"layer": start},
        groups=[["layer"]],
        energies={"layer": float(gram.diagonal().mean())},
        l1_weight=0.0,
        l2_weight=0.01,
        optimizer=torch.optim.SGD,
    )
    module.log = lambda *args, **kwargs: None
    module.training_step([inputs], 0).backward()
    energy = float(gram.diagonal().mean())
    expected = 2 * (start - weight) @ gram + 2 * 0.01 * energy * start
    torch.testing.assert_close(module.weights[0].grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["budget.calibration_sequences=0"], ConfigError, "num_sequences: expected .* 1, found 0"),
        (
            ["calibration_data.sentences=1", "budget.sequence_length=500"],
            DataError,
            "more than 500 tokens",
        ),
        (
            ["pipeline.calibration.mode=pack", "budget.calibration_sequences=100000"],
            DataError,
            "give more text or ask for fewer windows",
        ),
        (["budget.sequence_length=513"], ConfigError, "more than the model's context of 512"),
        (["budget.sequence_length=1"], ConfigError, "sequence_length: expected .* 2, found 1"),
        ([f"pipeline.{BASE}.prune.pattern.group=7"], ConfigError, "do not divide into groups of 7"),
        ([f"pipeline.{BASE}.prune.pattern.keep=4"], ConfigError, "0 < keep < group"),
        (["model.family=unknown"], ConfigError, "unknown family"),
    ],
)
def test_bad_input_is_refused_in_one_line(overrides, error, message, execute):
    with pytest.raises(error, match=message) as caught:
        execute(trimmed(sds_pipeline(*overrides)))
    assert "\n" not in str(caught.value)


def test_windows_name_their_documents(execute, store, monkeypatch):
    """With words as tokens, the middle word of each window is counted off by hand."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="word")
    monkeypatch.setattr(Checkpoint, "load_tokenizer", lambda self: tokenizer)
    pipeline = sds_pipeline(kept=("base", "test_text", "test"))
    execute(pipeline)
    graph = {one.name: one for one in build_graph(pipeline, store)}
    windows = store.open(graph["test"].stage, graph["test"].digest, Windows)
    corpus = store.open(graph["test_text"].stage, graph["test_text"].digest, Corpus)
    owners = [one.id for one in corpus.documents("test") for _ in one.text.split()]
    wanted, length = windows.token_ids().shape
    starts = [number * (len(owners) // length) // wanted * length for number in range(wanted)]
    assert windows.documents == [owners[start + length // 2] for start in starts]
    assert len(set(windows.documents)) > 1


def test_a_tokenizer_that_cannot_place_its_tokens_is_refused(execute, monkeypatch):
    slow = type("SlowTokenizer", (), {"is_fast": False})()
    monkeypatch.setattr(Checkpoint, "load_tokenizer", lambda self: slow)
    with pytest.raises(UnsupportedModelError, match="SlowTokenizer does not say where"):
        execute(sds_pipeline(kept=("base", "test_text", "test")))


def test_the_run_file_lists_every_stage(pipeline, execute):
    execute(pipeline)
    recorded = json.loads((execute.last.folder / "run.json").read_text())
    assert recorded["paper"] == "toy" and set(recorded["stages"]) == set(pipeline)
    assert (execute.last.folder / "artifacts" / "count" / "manifest.json").is_file()
