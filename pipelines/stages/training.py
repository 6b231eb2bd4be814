"""What the stages that train share: an optimiser, a Trainer configuration, and `fit` with both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.trainer import CURVE, MACHINE_KEYS, RESULT_KEYS, TrainerConfig
from effllm.pipelines.files import link_or_copy
from effllm.pipelines.stage import Stage, StageContext

if TYPE_CHECKING:
    import lightning as L

    from effllm.modules.training import OptimizerFactory


def unread(*keys: str) -> frozenset[str]:
    """`VOLATILE` of a stage that takes no notice of some keys of the trainer."""
    return frozenset(f"trainer.{key}" for key in (*MACHINE_KEYS, *keys))


@dataclass(frozen=True, kw_only=True)
class TrainingStage(Stage):
    """Base of the stages that train by gradient.

    Args:
        optimizer: factory of the optimiser.
        trainer: arguments of `lightning.Trainer`; those that change results enter the digest where
            they are not Lightning's defaults.
    """

    VOLATILE: ClassVar[frozenset[str]] = unread()
    DIGEST_DEFAULTS: ClassVar[Mapping[str, Any]] = {"trainer": RESULT_KEYS}

    optimizer: OptimizerFactory
    trainer: TrainerConfig

    def __post_init__(self) -> None:
        from effllm.modules.training import require_optimizer

        require_optimizer(self.optimizer)

    def optimizer_steps(self, rows: int, batch_size: int, epochs: int) -> int:
        """Steps of a training that goes through so many rows."""
        batches = -(-rows // batch_size)
        return epochs * -(-batches // self.trainer["accumulate_grad_batches"])

    def fit(
        self,
        ctx: StageContext,
        module: L.LightningModule,
        name: str = "",
        *,
        curve: str | None = None,
        progress: bool = True,
        own: Mapping[str, Any] | None = None,
        **data: Any,
    ) -> None:
        """Train, or go on where an interrupted attempt stopped.

        Args:
            ctx: of the stage; keeps checkpoints and curve, is told of every step.
            module: what is trained.
            name: of this training, where the stage has several.
            curve: file of the result that becomes the curve; None keeps it out of the result.
            progress: show the steps.
            own: keys of the trainer that this stage decides itself.
            data: epochs, data and seed, as of `fit`.
        """
        from effllm.modules.training import fit

        folder = ctx.progress_dir / "training" / name
        prefix = f"{name}/" if name else ""
        fit(
            module,
            folder,
            log=lambda values, step: ctx.log(
                {f"{prefix}{key}": value for key, value in values.items()}, step
            ),
            progress=(lambda done, total: ctx.progress(done, total, "step")) if progress else None,
            **data,
            **{**self.trainer, **(own or {})},
        )
        if curve is not None:
            link_or_copy(folder / CURVE, ctx.workdir / curve)
