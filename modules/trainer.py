"""How a training is configured: arguments of `lightning.Trainer`, told apart by what they change.

Nothing here imports torch, so that a plan can check them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

from effllm.modules.ranges import NonEmpty, NonNegativeInt, PositiveFloat, PositiveInt, Word

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback


class TrainerConfig(TypedDict):
    """Arguments of `lightning.Trainer`, and how often there is a checkpoint; see conf/trainer.

    Attributes:
        accelerator: auto takes a GPU where there is one.
        devices: how many, or which.
        strategy: Lightning's name; ddp_spawn starts a process for each device, auto is for one.
        precision: of the passes; weights stay float32.
        gradient_clip_val: largest norm of the gradient.
        accumulate_grad_batches: batches of a step.
        log_every_n_steps: steps between two rows for the tracker; a curve that is kept has all.
        every_n_train_steps: steps between two checkpoints of an epoch, as of `ModelCheckpoint`.
        callbacks: more of Lightning's callbacks.
    """

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: PositiveInt | NonEmpty[NonNegativeInt]
    strategy: Word
    precision: Literal["32-true", "bf16-mixed"]
    gradient_clip_val: PositiveFloat | None
    accumulate_grad_batches: PositiveInt
    log_every_n_steps: PositiveInt
    every_n_train_steps: PositiveInt
    callbacks: list[Callback]


CHECKPOINT, CURVE = "last.ckpt", "curve.csv"  # in the folder of a training
# The machine's: the same training whatever they say, so they enter no digest.
MACHINE_KEYS = frozenset(
    {"accelerator", "devices", "strategy", "log_every_n_steps", "every_n_train_steps"}
)
# What enters digests, and what it was before it could be set.
RESULT_KEYS: dict[str, Any] = {
    "precision": "32-true",
    "gradient_clip_val": None,
    "accumulate_grad_batches": 1,
    "callbacks": [],
}
# For what is so small that it stays on one processor.
ON_CPU = {"accelerator": "cpu", "devices": 1, "strategy": "auto"}


def one_device(trainer: TrainerConfig) -> dict[str, Any]:
    """Keys that keep a training on the first device."""
    devices = trainer["devices"]
    return {"devices": devices[:1] if isinstance(devices, list) else 1, "strategy": "auto"}
