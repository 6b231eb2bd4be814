"""Training: `fit` is `lightning.Trainer` with checkpoints, a curve and an order of rows.

A training has a folder. It holds `last.ckpt`, written every so many steps and after each epoch,
from which the same call goes on to the same weights, and `curve.csv`, which is then the same file
as that of a training that was never interrupted.
"""

import copy
import csv
import itertools
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from effllm.modules.errors import ConfigError
from effllm.modules.trainer import CHECKPOINT, CURVE

OptimizerFactory = Callable[..., torch.optim.Optimizer]
Log = Callable[[Mapping[str, float], int], None]


def require_optimizer(factory: OptimizerFactory) -> None:
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
    tensors: Sequence[Tensor] = (),
    batches: Dataset[Any] | None = None,
    batch_size: int = 1,
    seed: int = 0,
    log: Log | None = None,
    progress: Callable[[int, int], None] | None = None,
    log_every_n_steps: int = 1,
    every_n_train_steps: int = 100,
    callbacks: Sequence[L.Callback] = (),
    **trainer: Any,
) -> None:
    """Train to `epochs`, going on from the last checkpoint in `folder`.

    With several devices each takes its part of every batch, so that steps are the same. A strategy
    that starts processes (`ddp_spawn`) leaves the trained weights in `module`; `log` then hears of
    all steps when they are over, and `progress` of none.

    Args:
        module: what is trained.
        folder: of checkpoint and curve; made if missing.
        epochs: passes over the data.
        tensors: in memory, equal in their first dimension; a batch is a list of their rows.
        batches: instead of tensors: makes a batch of its number, counted over all epochs, when it
            is its turn, from the weights of that moment. Its length is that of an epoch.
        batch_size: rows of a batch, on all devices together.
        seed: of the shuffling; each epoch has its own order, the same after a resume.
        log: called with what the module logs, learning rate, norm of the gradient and examples per
            second, and the step.
        progress: called with steps done and in all.
        log_every_n_steps: steps between two calls of `log`.
        every_n_train_steps: steps between two checkpoints of an epoch.
        callbacks: more of Lightning's; each training has its own copy.
        trainer: arguments of `lightning.Trainer`: accelerator, devices, strategy, precision, …

    Raises:
        KeyboardInterrupt: when interrupted; Lightning would exit with another code.
    """
    _silence_lightning()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / CHECKPOINT
    order = _Order(module, seed, batches, len(tensors[0]) if tensors else 0, batch_size)
    source = _Rows(tensors) if batches is None else batches
    loader = DataLoader(source, batch_size=None, sampler=order)
    spawned = str(trainer.get("strategy", "")).endswith("_spawn")  # calls cannot leave a process
    calls = (None, None) if spawned else (log, progress)
    report = _Report(folder / CURVE, *calls, log_every_n_steps)
    lightning = L.Trainer(
        max_epochs=epochs,
        logger=False,
        callbacks=[*copy.deepcopy(callbacks), report, _SaveLast(checkpoint, every_n_train_steps)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **trainer,
    )
    resume: dict[str, Any] = (
        {"ckpt_path": checkpoint, "weights_only": True} if checkpoint.is_file() else {}
    )
    with warnings.catch_warnings():
        # True by design: the data are in memory, and an order goes on where its epoch stopped.
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
        try:
            lightning.fit(module, loader, **resume)
        except SystemExit as error:
            raise KeyboardInterrupt from error
    if spawned:
        module.on_load_checkpoint(torch.load(checkpoint, weights_only=True))
        if log is not None:
            _tell(folder / CURVE, log, log_every_n_steps)


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


def _silence_lightning() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)  # which Lightning sets on import


class _SaveLast(L.Callback):
    """A checkpoint within an epoch and after it.

    Lightning's `ModelCheckpoint` saves before the module's own hook at the end of a batch, so that
    a judgement made there would be lost, and a power cut could leave an empty file of it.
    """

    def __init__(self, path: Path, every_n_train_steps: int) -> None:
        self.path, self.every_n_train_steps = path, every_n_train_steps

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save when all is done that belongs to the step before."""
        batches = self.every_n_train_steps * trainer.accumulate_grad_batches
        if batch_idx and batch_idx % batches == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            with partial.open("rb") as written:
                os.fsync(written.fileno())  # or a power cut leaves an empty file under this name
            partial.replace(self.path)


class _Report(L.Callback):
    """Writes the curve, rows of step, name and value, and tells others.

    Curves are parts of results, so times go to `log` only. A checkpoint knows how long the curve
    was, and the last value of all that is logged.
    """

    def __init__(
        self,
        path: Path,
        log: Log | None,
        progress: Callable[[int, int], None] | None,
        every_n_steps: int,
    ) -> None:
        self.path, self.tell, self.progress = path, log, progress  # `log` is set by Lightning
        self.every_n_steps = every_n_steps
        self.norm: float | None = None
        self.kept: dict[str, Any] | None = None
        self.clock, self.rows = 0.0, 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a process that was started for a device, where nobody has silenced Lightning yet."""
        self.__dict__.update(state)
        _silence_lightning()
        warnings.filterwarnings("ignore", module=r"lightning\..*")

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The curve comes to the disk before the checkpoint that counts its bytes."""
        if not trainer.is_global_zero:
            return
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
        checkpoint["curve"] = {"bytes": size, "logged": dict(trainer.callback_metrics)}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember how long the curve was."""
        self.kept = checkpoint["curve"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A new curve, or what was there at the checkpoint that is gone on from."""
        self.clock = time.perf_counter()
        if self.kept is not None:
            trainer.callback_metrics.update(self.kept["logged"])
        if not trainer.is_global_zero:
            return
        if self.kept is None:
            with self.path.open("w", newline="") as file:
                csv.writer(file).writerow(["step", "name", "value"])
        else:
            os.truncate(self.path, self.kept["bytes"])
            if self.tell is not None:
                _tell(self.path, self.tell, self.every_n_steps)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The norm of the gradient, before it is clipped."""
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        self.norm = float(torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Rows of a step that is made."""
        self.rows += len(next(iter(batch.values())) if isinstance(batch, dict) else batch[0])
        at = index + 1
        if at % trainer.accumulate_grad_batches and at < trainer.num_training_batches:
            return
        values = {
            name: float(trainer.strategy.reduce(value, reduce_op="mean"))
            for name, value in trainer.callback_metrics.items()
        }
        values["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        if self.norm is not None:
            values["gradient_norm"] = self.norm
        now = time.perf_counter()
        speed = self.rows * trainer.world_size / (now - self.clock)
        self.clock, self.rows = now, 0
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([step, name, repr(value)] for name, value in values.items())
        if self.tell is not None and step % self.every_n_steps == 0:
            self.tell({**values, "examples_per_second": speed}, step)
        if self.progress is not None:
            self.progress(step, int(trainer.estimated_stepping_batches))


def _tell(curve: Path, log: Log, every_n_steps: int) -> None:
    """Log what a curve says of steps that are over."""
    with curve.open(newline="") as file:
        for step, rows in itertools.groupby(csv.DictReader(file), lambda row: int(row["step"])):
            if step % every_n_steps == 0:
                log({row["name"]: float(row["value"]) for row in rows}, step)


class _Rows(Dataset[list[Tensor]]):
    """Rows of several tensors, fetched a whole batch at a time."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, rows: Tensor) -> list[Tensor]:
        return [tensor[rows] for tensor in self.tensors]


class _Order(Sampler[Any]):
    """What each step of an epoch is made of: shuffled rows, or the number of a batch.

    It depends on seed and epoch only, and begins after the steps that a resumed epoch has done.
    Rows are dealt out to the devices; those of a batch that does not come out even are repeated.
    """

    def __init__(
        self,
        module: L.LightningModule,
        seed: int,
        batches: Dataset[Any] | None,
        rows: int,
        batch_size: int,
    ) -> None:
        self.module, self.seed, self.rows, self.batch_size = module, seed, rows, batch_size
        self.made = batches is not None
        self.length = len(batches) if batches is not None else -(-rows // batch_size)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        trainer, epoch = self.module.trainer, self.module.current_epoch
        world = trainer.world_size
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if self.made:
            yield from range(epoch * self.length + done, (epoch + 1) * self.length)
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        for rows in torch.randperm(self.rows, generator=generator).split(self.batch_size)[done:]:
            each = -(-len(rows) // world)
            yield rows[torch.arange(each * world) % len(rows)][trainer.global_rank :: world]
