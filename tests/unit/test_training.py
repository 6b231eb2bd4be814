"""Training: curves and streams, whole after an interruption."""

import csv

import lightning as L
import pytest
import torch
from torch.utils.data import IterableDataset

from effllm.modules.training import fit


class Line(L.LightningModule):
    """A slope that is learned, and stops by itself where it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))
        self.stop_at = stop_at
        self.seen: list[float] = []

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def training_step(self, batch, index):
        if self.stop_at is not None and self.global_step == self.stop_at:
            raise KeyboardInterrupt
        x = batch[0]
        self.seen.append(float(x.sum()))
        loss = ((self.slope * x - 2 * x) ** 2).mean()
        self.log("loss", loss)
        return loss


class Stream(IterableDataset):
    """Batches that carry the weights of the moment they are made."""

    def __init__(self, module: Line) -> None:
        self.module = module

    def __len__(self) -> int:
        return 3

    def __iter__(self):
        for _ in range(3):
            yield [self.module.slope.detach().clone() + 1]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_resumed_curve_is_that_of_an_uninterrupted_training(tmp_path):
    data = [torch.arange(1.0, 7.0)[:, None]]
    whole = Line()
    fit(whole, tmp_path / "a", epochs=3, device="cpu", tensors=data, batch_size=2,
        curve=tmp_path / "a.csv")  # fmt: skip
    halted = {"epochs": 3, "device": "cpu", "tensors": data, "batch_size": 2}
    with pytest.raises(KeyboardInterrupt):
        fit(Line(stop_at=5), tmp_path / "b", **halted, curve=tmp_path / "b.csv")
    again = Line()
    fit(again, tmp_path / "b", **halted, curve=tmp_path / "b.csv")
    assert torch.equal(whole.slope, again.slope)
    assert rows(tmp_path / "a.csv") == rows(tmp_path / "b.csv")
    names = [row[1] for row in rows(tmp_path / "a.csv")[1:]]
    assert len(names) == 27
    assert set(names) == {"loss", "learning_rate", "gradient_norm"}


def test_a_stream_makes_each_batch_from_the_weights_of_that_moment(tmp_path):
    module = Line()
    seen: list[float] = []

    class Watched(Stream):
        def __iter__(self):
            for batch in super().__iter__():
                seen.append(float(self.module.slope.detach()))
                yield batch

    fit(module, tmp_path, epochs=2, device="cpu", batches=Watched(module))
    assert len(set(seen)) == 6  # the slope moves at every step, and every batch knows it
    assert seen == pytest.approx([value - 1 for value in module.seen])
