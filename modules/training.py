"""Training with Lightning: a checkpoint after every epoch, and going on from the last one."""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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
    batch_size: int = 1,
    seed: int = 0,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train to `epochs`, with a checkpoint after each in `folder`, going on from the last one.

    Args:
        module: what is trained.
        folder: holds `last.ckpt`; made if missing.
        epochs: passes over the data.
        device: torch device string.
        tensors: in memory, equal in their first dimension; a batch is a list of their rows. None
            where the module reads no data: an epoch is then one step.
        batch_size: rows per step.
        seed: of the shuffling; each epoch has its own order, the same after a resume.
        precision: of the passes; weights stay float32.
        progress: called with steps done and in all.

    Raises:
        KeyboardInterrupt: when interrupted; Lightning would exit with another code.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # Lightning sets it on import
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / CHECKPOINT
    if tensors is None:
        loader: DataLoader[Any] = DataLoader(_OneStep())
    else:
        batches = _EpochBatches(len(tensors[0]), batch_size, module, seed)
        loader = DataLoader(_Rows(tensors), batch_sampler=batches, collate_fn=_unchanged)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="gpu" if device.startswith("cuda") else "cpu",
        devices=[int(device.partition(":")[2] or 0)] if device.startswith("cuda") else 1,
        logger=False,
        precision=precision,
        callbacks=[_SaveEveryEpoch(checkpoint), _ReportSteps(progress)],
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
        try:
            trainer.fit(module, loader, **resume)
        except SystemExit as error:
            raise KeyboardInterrupt from error


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
