"""A model so small that its training can be checked by hand."""

import lightning as L
import torch
from torch.utils.data import Dataset


class Line(L.LightningModule):
    """A slope that is learned, and stops by itself where it is told."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))
        self.stop_at = stop_at
        self.seen = []
        self.register_buffer("steepest", torch.zeros(1))

    def stop(self):
        raise KeyboardInterrupt

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def training_step(self, batch, index):
        if len(self.seen) == self.stop_at:
            self.stop()
        x = batch[0]
        self.seen.append(float(x.sum()))
        loss = ((self.slope * x - 2 * x) ** 2).mean()
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs, batch, index):
        """A judgement that only some steps make, and that is kept."""
        if self.global_step % 3 == 1:
            self.steepest.copy_(self.slope.detach())
            self.log("steepest", self.steepest.clone())


class Stream(Dataset):
    """Batches that carry the weights of the moment they are made."""

    def __init__(self, module):
        self.module, self.slopes, self.numbers = module, [], []

    def __len__(self):
        return 3

    def __getitem__(self, number):
        self.numbers.append(number)
        self.slopes.append(float(self.module.slope.detach()))
        return [self.module.slope.detach().clone() + 1]
