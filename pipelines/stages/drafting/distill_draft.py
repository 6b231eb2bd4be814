"""Make a draft model for a target out of some of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from effllm.modules.errors import DataError
from effllm.modules.ranges import Dtype, NonEmpty, NonNegativeInt, PositiveInt, Ratio, Seed
from effllm.pipelines.artifacts.checkpoints import VOCABULARY_FILE, Checkpoint
from effllm.pipelines.artifacts.decoding import Traces
from effllm.pipelines.stage import Metrics, StageContext
from effllm.pipelines.stages.training import TrainingStage, unread


@dataclass(frozen=True, kw_only=True)
class DistillDraft(TrainingStage):
    """Train some of a target's layers to foresee it, on texts that it wrote.

    Args:
        layers: the target's block numbers that the draft starts from.
        vocabulary: tokens that the draft can predict: the most frequent of the traces.
        epochs: passes over the traces.
        batch_texts: texts per step.
        heldout: share of the texts on which agreement is measured, never trained on.
        precision: of the training passes.
        dtype: of the stored weights.
        seed: of the shuffling.
    """

    VERSION: ClassVar[int] = 2  # 2: likely tokens come with the traces
    INPUTS: ClassVar = {"model": Checkpoint, "traces": Traces}
    OUTPUT: ClassVar = Checkpoint
    VOLATILE: ClassVar = unread("precision")

    layers: NonEmpty[NonNegativeInt]
    vocabulary: PositiveInt
    epochs: PositiveInt
    batch_texts: PositiveInt
    heldout: Ratio
    precision: Literal["32-true", "bf16-mixed"]
    dtype: Dtype
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """A checkpoint of the target's kind, and the tokens it can predict."""
        import torch
        from safetensors.torch import save_file
        from torch.nn.utils.rnn import pad_sequence

        from effllm.modules.drafting.distillation import (
            DraftDistillation,
            agreement,
            within_vocabulary,
        )
        from effllm.modules.drafting.shape import (
            reduce_vocabulary,
            restore_vocabulary,
            usual_tokens,
            with_layers,
        )

        checkpoint = ctx.input("model", Checkpoint)
        tokenizer = checkpoint.load_tokenizer()
        traces = ctx.input("traces", Traces).load()
        count = len(traces["tokens"])
        kept = round(count * (1 - self.heldout))
        if not 0 < kept < count:
            raise DataError(
                f"distill_draft: {count} traces leave {kept} to train on and "
                f"{count - kept} to measure on; generate more"
            )
        order = torch.randperm(count, generator=ctx.generator("split")).tolist()
        texts, likely, chances = (
            pad_sequence([traces[key][index] for index in order], batch_first=True)
            for key in ("tokens", "likely", "probabilities")
        )
        prompts = torch.stack([traces["prompt_lengths"][index] for index in order])
        known = [traces["tokens"][index].tolist() for index in order[:kept]]
        token_ids = usual_tokens(known, self.vocabulary, tokenizer.all_special_ids)
        columns, learnt = within_vocabulary(likely, chances, token_ids)

        target = checkpoint.load_model("float32")
        draft = with_layers(target, self.layers)
        del target
        head = draft.get_output_embeddings()
        reduce_vocabulary(draft, token_ids)
        self.fit(
            ctx,
            DraftDistillation(draft.train(), self.optimizer),
            own={"precision": self.precision},
            epochs=self.epochs,
            tensors=[texts[:kept], columns[:kept], learnt[:kept]],
            batch_size=self.batch_texts,
            seed=self.seed,
        )
        draft.to(ctx.device).eval()  # type: ignore[arg-type] # its wrapper hides the method
        # Judged where it will be used: after the prompt, on texts it was not trained on.
        written = chances[kept:].sum(dim=-1) > 0
        written &= torch.arange(texts.shape[1]) >= prompts[kept:, None] - 1
        choices = likely[kept:, :, 0]
        agreed = agreement(draft, texts[kept:], choices, written)
        inside = torch.isin(choices[written], token_ids).float().mean()
        parameters = sum(one.numel() for one in draft.parameters())
        restore_vocabulary(draft, head)
        step = {"stage": "distill_draft", "layers": self.layers, "vocabulary": len(token_ids)}
        Checkpoint.write(
            ctx.workdir,
            draft.to(getattr(torch, self.dtype)),
            tokenizer,
            [*checkpoint.history, step],
        )
        save_file({"token_ids": token_ids}, ctx.workdir / VOCABULARY_FILE)
        return {
            "agreement": agreed,
            "vocabulary": len(token_ids),
            "choices_inside_vocabulary": float(inside),
            "parameters": parameters,
        }
