"""Stages of orders: interrupted anywhere they end with the same files; misfits are refused."""

import pytest
from interrupting import interrupt

from effllm.modules import training
from effllm.modules.errors import ConfigError
from effllm.modules.permutation import search
from effllm.pipelines.commands.composing import compose, resolve
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.store import Store

STAGES = ("base", "calibration_text", "calibration", "heldout", "heldout_gram", "gram", "unchanged",
          "ria_repeated", "swaps", "loss_swaps", "learned", "jointly")  # fmt: skip


def order_pipeline(*overrides):
    pipeline, _ = resolve(compose(["paper=permutation", "scale=smoke", *overrides]))
    kept = {name: pipeline[name] for name in STAGES}
    for arm in kept.values():
        arm.pop("prune", None)
    return kept


def files(store, pipeline, name):
    one = next(one for one in build_graph(pipeline, store) if one.name == name)
    folder = store.root / "artifacts" / one.stage / one.digest[:12]
    return {
        file.relative_to(folder): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }


def test_stops_at_a_site_and_a_step_change_nothing(execute, store, monkeypatch, tmp_path):
    pipeline = order_pipeline(
        "budget.permutation.epochs=2",
        "budget.permutation.batch_windows=2",
        "trainer.every_n_train_steps=1",
    )
    whole = Store(tmp_path / "whole")
    execute(pipeline, store=whole)
    stops = (
        (search.RelativeImportance, "find", 3, "ria_repeated.search"),
        (search.LossSwaps, "improve", 2, "loss_swaps.improve"),
        (training._Report, "on_train_batch_end", 5, "learned.learn"),  # of the second site
        (training._Report, "on_train_batch_end", 6, "jointly.learn"),  # of the second epoch
    )
    for stop in stops:
        interrupt(execute, pipeline, [stop], monkeypatch)
        stage = stop[-1]
        assert execute(pipeline, until=stage)[stage] == "resumed"
        assert files(store, pipeline, stage) == files(whole, pipeline, stage)


def test_learning_goes_on_from_orders_for_the_same_pattern_only(execute):
    pipeline = order_pipeline("pattern@pipeline.swaps.improve.pattern=4of8")
    with pytest.raises(ConfigError, match=r"swaps\.improve: pattern is 4:8.*searched for 2:4"):
        execute(pipeline, until="swaps.improve")


def test_a_pattern_that_straddles_the_channels_is_refused(execute):
    pipeline = order_pipeline()
    for arm in ("unchanged", "ria_repeated"):
        pipeline[arm]["search"]["pattern"] = {
            "_target_": "effllm.modules.sparsity.patterns.Grouped", "keep": 3, "group": 5
        }  # fmt: skip
    with pytest.raises(ConfigError, match=r"site 0\..*64 channels.*groups of 5"):
        execute(pipeline, until="ria_repeated.search")
