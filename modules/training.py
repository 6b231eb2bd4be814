"""Training with Lightning: a checkpoint after every epoch, and going on from the last one."""

import csv
import logging
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from effllm.modules.errors import ConfigError

CHECKPOINT = "last.ckpt"


def require_optimizer(factory: Callable[..., torch.optim.Optimizer]) -> None:
    """Refuse settings that the optimiser itself refuses, before there is anything to train.

    Raises:
        ConfigError: in the optimiser's words.
    """
    try:
        factory([torch.nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError) as error:
        raise ConfigError(f"optimizer: {error}") from error


def fit(
    module: L.LightningModule,
    folder: Path,
    *,
    epochs: int,
    device: str,
    tensors: list[Tensor] | None = None,
    batches: IterableDataset[Any] | None = None,
    batch_size: int = 1,
    seed: int = 0,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    progress: Callable[[int, int], None] | None = None,
    curve: Path | None = None,
) -> None:
    """Train to `epochs`, with a checkpoint after each in `folder`, going on from the last one.

    Args:
        module: what is trained.
        folder: holds `last.ckpt`; made if missing.
        epochs: passes over the data.
        device: torch device string.
        tensors: in memory, equal in their first dimension; a batch is a list of their rows. None
            where the module reads no data: an epoch is then one step.
        batches: instead of tensors: makes whole batches while training goes on, each from the
            weights of that moment. It must know its length, or Lightning would fetch one ahead.
        batch_size: rows per step.
        seed: of the shuffling; each epoch has its own order, the same after a resume.
        precision: of the passes; weights stay float32.
        progress: called with steps done and in all.
        curve: a CSV file for all that the module logs, step by step, with learning rate and norm of
            the gradient; a resumed training ends with the same file as an uninterrupted one.

    Raises:
        KeyboardInterrupt: when interrupted; Lightning would exit with another code.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # Lightning sets it on import
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / CHECKPOINT
    if batches is not None:
        loader: DataLoader[Any] = DataLoader(batches, batch_size=None)
    elif tensors is None:
        loader = DataLoader(_OneStep())
    else:
        order = _EpochBatches(len(tensors[0]), batch_size, module, seed)
        loader = DataLoader(_Rows(tensors), batch_sampler=order, collate_fn=_unchanged)
    callbacks: list[L.Callback] = [_SaveEveryEpoch(checkpoint), _ReportSteps(progress)]
    if curve is not None:
        callbacks.append(_Curve(curve))
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="gpu" if device.startswith("cuda") else "cpu",
        devices=[int(device.partition(":")[2] or 0)] if device.startswith("cuda") else 1,
        logger=False,
        precision=precision,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    resume: dict[str, Any] = (
        {"ckpt_path": checkpoint, "weights_only": True} if checkpoint.is_file() else {}
    )
    with warnings.catch_warnings():
        # True by design: a Gram solver has no optimiser, and the data are in memory already.
        warnings.filterwarnings("ignore", message=".*this fit will run with no optimizer")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined")
        try:
            trainer.fit(module, loader, **resume)
        except SystemExit as error:
            raise KeyboardInterrupt from error


def rising_then_falling(
    optimizer: torch.optim.Optimizer, *, steps: int, warmup: float
) -> OptimizerLRSchedulerConfig:
    """An optimiser whose learning rate rises in a line, then falls to zero as half a cosine.

    Args:
        optimizer: with its highest learning rates.
        steps: of the whole training.
        warmup: share of them that rise; one step at least.
    """
    rise = max(1, int(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _SaveEveryEpoch(L.Callback):
    """Lightning's ModelCheckpoint counts optimiser steps; a Gram solver has none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())  # or a power cut leaves an empty file under the final name
        partial.replace(self.path)


class _ReportSteps(L.Callback):
    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self.progress = progress

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if self.progress is not None:
            self.progress(trainer.global_step, int(trainer.estimated_stepping_batches))


class _Curve(L.Callback):
    """Rows of step, name and value; those after the checkpoint that is gone on from are dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.norm: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        kept: list[list[str]] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                rows = list(csv.reader(file))
            kept = [row for row in rows[1:] if len(row) == 3 and int(row[0]) <= trainer.global_step]
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows([["step", "name", "value"], *kept])

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        self.norm = float(torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.optimizers:
            values["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        if self.norm is not None:
            values["gradient_norm"] = self.norm
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(
                [trainer.global_step, name, repr(value)] for name, value in values.items()
            )


class _Rows(Dataset[list[Tensor]]):
    """Rows of several tensors, fetched a whole batch at a time."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __getitems__(self, rows: Tensor) -> list[Tensor]:
        return [tensor[rows] for tensor in self.tensors]


def _unchanged(batch: list[Tensor]) -> list[Tensor]:
    return batch


class _OneStep(Dataset[int]):
    """An epoch of one batch."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return index


class _EpochBatches:
    """Shuffled batches whose order depends on seed and epoch only, so that resuming repeats it."""

    def __init__(self, length: int, batch_size: int, module: L.LightningModule, seed: int) -> None:
        self.length, self.batch_size, self.module, self.seed = length, batch_size, module, seed

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Any:  # tensors; DataLoader is typed for lists
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.module.current_epoch)
        yield from torch.randperm(self.length, generator=generator).split(self.batch_size)
