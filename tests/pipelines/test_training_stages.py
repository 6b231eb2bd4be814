"""What all stages that train have in common: devices, settings of the trainer, curves."""

import csv

import pytest
from safetensors.torch import load_file

from effllm.pipelines.commands.composing import compose, resolve
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.store import Store
from effllm.pipelines.engine.tracking import CsvLogger


@pytest.fixture
def trained(execute, tmp_path):
    """Train a small pair, its draft made of the target; its digest, folder and tracked curve."""

    def run(name, *overrides):
        store = Store(tmp_path / name)
        told = ["paper=cospec", "scale=smoke", "budget.arbitration.target_problems=320", *overrides]
        pipeline = {"pair": resolve(compose(told))[0]["toy_null"]["pair"]}
        execute(pipeline, store=store, logger=CsvLogger())
        (one,) = build_graph(pipeline, store)
        with (store.root / "runs" / "toy" / "curves" / "pair.csv").open(newline="") as file:
            tracked = [(int(row["step"]), row["metric"]) for row in csv.DictReader(file)]
        return one.digest, store.folder(one.stage, one.digest), tracked

    return run


def rows(folder):
    return list(csv.reader((folder / "target.csv").read_text().splitlines()[1:]))


def test_two_processes_train_as_one(trained, capfd):
    """To rounding: all rows of a batch weigh the same, and each process has half of them."""
    digest, one, tracked = trained("one")
    other_digest, two, told_after = trained(
        "two", "trainer.devices=2", "trainer.strategy=ddp_spawn"
    )
    assert digest == other_digest and capfd.readouterr() == ("", "")
    mine, theirs = (load_file(folder / "target" / "model.safetensors") for folder in (one, two))
    for name, weight in mine.items():
        assert float((weight - theirs[name]).abs().max()) < 1e-5
    assert [row[:2] for row in rows(one)] == [row[:2] for row in rows(two)]
    # While it trains, one process can say how fast it is.
    assert (
        {*told_after}
        < {*tracked}
        == {*told_after} | {(step, "target/examples_per_second") for step in range(1, 6)}
    )


def test_settings_of_the_trainer_reach_the_training(trained):
    digest, one, _ = trained("plain")
    other, two, _ = trained("accumulated", "trainer.accumulate_grad_batches=2")
    assert digest != other
    steps = [{int(row[0]) for row in rows(folder)} for folder in (one, two)]
    assert steps == [{1, 2, 3, 4, 5}, {1, 2, 3}]
