"""Training: whole after an interruption, dealt out to devices, with Lightning's settings."""

import csv
import os
import signal

import lightning as L
import pytest
import torch
from lines import Line, Stream

from effllm.modules.training import _Order, fit

DATA = [torch.arange(1.0, 8.0)[:, None]]


def train(module, folder, **changes):
    data = {"epochs": 3, "tensors": DATA, "batch_size": 2, "seed": 1}
    fit(module, folder, **{**data, "accelerator": "cpu", **changes})
    return module


def rows(folder):
    with (folder / "curve.csv").open(newline="") as file:
        return [
            (int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize(("every", "accumulated"), [(1, 1), (2, 1), (1, 2), (100, 1)])
def test_stopped_anywhere_it_ends_with_the_same_weights_and_curve(every, accumulated, tmp_path):
    options = {"every_n_train_steps": every, "accumulate_grad_batches": accumulated}
    whole = train(Line(), tmp_path / "whole", **options)
    assert len(whole.seen) == 12  # four batches an epoch
    for stop in (3, 6, 8):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            train(Line(stop), folder, **options)
        again = train(Line(), folder, **options)
        assert torch.equal(whole.slope, again.slope)
        assert torch.equal(whole.steepest, again.steepest)
        assert (folder / "curve.csv").read_bytes() == (tmp_path / "whole/curve.csv").read_bytes()
        # An epoch has four batches; within it there is a checkpoint every so many steps.
        kept = stop // 4 * 4 + stop % 4 // (every * accumulated) * every * accumulated
        assert again.seen == whole.seen[kept:]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of fork, from 3.12 on
def test_killed_inside_an_epoch_it_ends_with_the_same_weights(tmp_path):
    class Killed(Line):
        def stop(self):
            os.kill(os.getpid(), signal.SIGKILL)

    whole = train(Line(), tmp_path / "whole")
    folder = tmp_path / "killed"
    child = os.fork()  # a process of its own dies without any clean-up
    if child == 0:
        train(Killed(7), folder, every_n_train_steps=2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = train(Line(), folder, every_n_train_steps=2)
    assert again.seen == whole.seen[6:] and torch.equal(again.slope, whole.slope)
    assert (folder / "curve.csv").read_bytes() == (tmp_path / "whole/curve.csv").read_bytes()


def test_a_training_that_is_over_is_only_read(tmp_path):
    whole = train(Line(), tmp_path)
    curve = (tmp_path / "curve.csv").read_bytes()
    again = train(Line(), tmp_path)
    assert not again.seen and torch.equal(whole.slope, again.slope)
    assert (tmp_path / "curve.csv").read_bytes() == curve


def test_curves_hold_what_does_not_depend_on_the_machine_and_loggers_the_speed_too(tmp_path):
    heard = {}
    train(Line(), tmp_path, log=lambda values, step: heard.setdefault(step, dict(values)))
    names = {"loss", "learning_rate", "gradient_norm", "steepest"}
    assert {name for _, name, _ in rows(tmp_path)} == names
    assert list(heard) == list(range(1, 13))
    for step, values in heard.items():
        assert values.pop("examples_per_second") > 0
        assert values == {name: value for at, name, value in rows(tmp_path) if at == step}
    seldom = []
    train(Line(), tmp_path / "seldom", log=lambda values, step: seldom.append(step),
          log_every_n_steps=5)  # fmt: skip
    assert seldom == [5, 10]


def test_a_resumed_training_tells_its_logger_the_whole_curve(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(Line(7), tmp_path, every_n_train_steps=2)
    heard = []
    train(Line(), tmp_path, log=lambda values, step: heard.append(step), every_n_train_steps=2)
    assert heard == list(range(1, 13))


@pytest.mark.parametrize("stop", [None, 4])
def test_a_stream_makes_each_batch_from_the_weights_of_that_moment(stop, tmp_path):
    module = Line(stop)
    stream = Stream(module)
    if stop is not None:  # within the second epoch
        with pytest.raises(KeyboardInterrupt):
            train(module, tmp_path, epochs=2, tensors=(), batches=stream, every_n_train_steps=1)
        module = Line()
        stream = Stream(module)
    train(module, tmp_path, epochs=2, tensors=(), batches=stream, every_n_train_steps=1)
    assert stream.numbers == list(range(stop or 0, 6))
    assert len(set(stream.slopes)) == len(stream.slopes)  # it moves at every step
    assert stream.slopes == pytest.approx([value - 1 for value in module.seen])


def test_settings_of_the_trainer_reach_it_and_callbacks_are_copied(tmp_path):
    class Count(L.Callback):
        calls = 0

        def on_train_batch_end(self, trainer, *rest):
            self.calls += 1
            assert trainer.gradient_clip_val == 0.5 and trainer.accumulate_grad_batches == 2

    class Plain(Line):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

        def optimizer_step(self, *arguments):
            before = self.slope.detach().clone()
            super().optimizer_step(*arguments)
            assert float((self.slope.detach() - before).abs()) <= 0.5 + 1e-6

    count = Count()
    train(Plain(), tmp_path, callbacks=[count], gradient_clip_val=0.5, accumulate_grad_batches=2)
    assert count.calls == 0
    stop = L.pytorch.callbacks.EarlyStopping("loss", stopping_threshold=1e9)
    assert len(train(Line(), tmp_path / "stopped", callbacks=[stop]).seen) == 4


@pytest.mark.parametrize(("rows", "world"), [(7, 2), (1, 3), (8, 4)])
def test_rows_are_dealt_out_evenly_and_none_is_lost(rows, world):
    class Trainer:
        world_size = world

        class fit_loop:
            class epoch_loop:
                class batch_progress:
                    class current:
                        ready = 0

    class Module:
        trainer, current_epoch = Trainer, 2

    def dealt(rank):
        Trainer.global_rank = rank
        return [one.tolist() for one in _Order(Module, 5, None, rows, 4)]

    ranks = [dealt(rank) for rank in range(world)]
    for parts in zip(*ranks, strict=True):
        assert len({len(part) for part in parts}) == 1
    Trainer.world_size = 1
    for parts, whole in zip(zip(*ranks, strict=True), dealt(0), strict=True):
        assert {row for part in parts for row in part} == set(whole)
