"""Train drafting heads on cached hidden states of their target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
)
from effllm.pipelines.artifacts.heads import Heads, HiddenStates
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.training import TrainingStage, unread

if TYPE_CHECKING:
    from effllm.modules.heads.drafter import HeadDrafter


@dataclass(frozen=True, kw_only=True)
class TrainHeads(TrainingStage):
    """Heads that guess several tokens at once from a frozen target's last hidden states.

    Args:
        drafter: factory of the heads; given the target's configuration.
        vocabulary: tokens that heads can guess: the most frequent of the texts, and then the first
            of the tokenizer.
        epochs: passes over the texts.
        batch_texts: texts per step.
        judged_every: steps between judgements on held-out texts, from the first of an epoch on.
        judged_texts: first so many held-out texts that do this; all of them judge the end.
        attention_scale: learning rate of attention layers, relative to the others'.
        warmup: share of all steps with a rising learning rate.
        clip_norm: largest norm of the gradient.
        decay: weight of each head in the loss relative to the one before it.
        ce_weight: of the true tokens.
        kd_weight: of the target's law.
        precision: of the training passes; weights stay float32.
        seed: of the random parts of the start and of the shuffling.
    """

    INPUTS: ClassVar = {"states": HiddenStates, "heldout": HiddenStates}
    OUTPUT: ClassVar = Heads
    VOLATILE: ClassVar = unread("precision", "gradient_clip_val")

    drafter: Callable[..., HeadDrafter]
    vocabulary: PositiveInt
    epochs: PositiveInt
    batch_texts: PositiveInt
    judged_every: PositiveInt
    judged_texts: PositiveInt
    attention_scale: PositiveFloat
    warmup: Fraction
    clip_norm: PositiveFloat
    decay: Share
    ce_weight: NonNegativeFloat
    kd_weight: NonNegativeFloat
    precision: Literal["32-true", "bf16-mixed"]
    seed: Seed

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ce_weight + self.kd_weight:
            raise ConfigError("train_heads: ce_weight and kd_weight are both 0; nothing is taught")

    def run(self, ctx: StageContext) -> Metrics:
        """`heads.safetensors`, `ranks.safetensors` of held-out texts, `curve.csv`."""
        import torch

        from effllm.modules.drafting.shape import usual_tokens
        from effllm.modules.heads.asking import accuracies, true_ranks
        from effllm.modules.heads.target import FrozenTarget, with_lowest
        from effllm.modules.heads.training import HeadTraining

        states, heldout = ctx.input("states", HiddenStates), ctx.input("heldout", HiddenStates)
        heldout.require_target(states.target)
        texts, judged = states.texts(), heldout.texts()
        weights, special = states.weights(), states.target["special"]
        known = usual_tokens(texts.all_tokens(), self.vocabulary, special)
        token_ids = with_lowest(known, self.vocabulary, len(weights[0]))
        target = FrozenTarget.of(*weights, token_ids)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            drafter = self.drafter(states.config())
        module = HeadTraining(
            drafter.train(),
            target,
            texts,
            judged,
            judged_every=self.judged_every,
            judged_texts=self.judged_texts,
            optimizer=self.optimizer,
            attention_scale=self.attention_scale,
            warmup=self.warmup,
            clip_norm=self.clip_norm,
            decay=self.decay,
            ce_weight=self.ce_weight,
            kd_weight=self.kd_weight,
        )
        self.fit(
            ctx,
            module,
            curve="curve.csv",
            own={"precision": self.precision},
            epochs=self.epochs,
            tensors=[torch.arange(len(texts))],
            batch_size=self.batch_texts,
            seed=self.seed,
        )
        drafter.to(ctx.device).eval()
        ranks, owners = true_ranks(drafter, target.to(ctx.device), judged, ctx.device)
        Heads.write(ctx.workdir, states, self.drafter, drafter, target, (ranks, owners))
        return {
            **{f"heldout/{key}": value for key, value in accuracies(ranks).items()},
            "heldout/positions": len(ranks),
            "parameters": sum(one.numel() for one in drafter.parameters()),
            "vocabulary": len(token_ids),
            "texts": len(texts),
            "steps": self.optimizer_steps(len(texts), self.batch_texts, self.epochs),
        }
