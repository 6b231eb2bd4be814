"""Make a draft model for a target out of some of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from effllm.modules.errors import DataError
from effllm.pipelines.artifacts import VOCABULARY_FILE, Checkpoint, Traces, write_checkpoint
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.drafting.distillation import OptimizerFactory


@dataclass(frozen=True, kw_only=True)
class DistillDraft(Stage):
    """Train some of a target's layers to foresee it, on texts that it wrote.

    Args:
        layers: the target's block numbers that the draft starts from.
        vocabulary: tokens that the draft can predict: the most frequent of the traces.
        optimizer: factory of the optimiser.
        epochs: passes over the traces.
        batch_texts: texts per step.
        top: likely tokens of the target that are learnt at every place.
        heldout: share of the texts on which agreement is measured, never trained on.
        precision: of the training passes.
        dtype: of the target and of the stored weights.
        seed: of the shuffling.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "traces": Traces}
    OUTPUT: ClassVar = Checkpoint

    layers: list[int]
    vocabulary: int
    optimizer: OptimizerFactory
    epochs: int
    batch_texts: int
    top: int
    heldout: float
    precision: Literal["32-true", "bf16-mixed"]
    dtype: str
    seed: int

    def run(self, ctx: StageContext) -> Metrics:
        """A checkpoint of the target's kind, and the tokens it can predict."""
        import torch
        from safetensors.torch import save_file

        from effllm.modules.drafting.distillation import DraftDistillation, agreement
        from effllm.modules.drafting.shape import (
            reduce_vocabulary,
            restore_vocabulary,
            usual_tokens,
            with_layers,
        )
        from effllm.modules.training import fit

        checkpoint = ctx.input("model", Checkpoint)
        tokenizer = checkpoint.load_tokenizer()
        texts, prompt_lengths = ctx.input("traces", Traces).texts()
        kept = round(len(texts) * (1 - self.heldout))
        if not 0 < kept < len(texts):
            raise DataError(
                f"distill_draft: {len(texts)} traces leave {kept} to train on and "
                f"{len(texts) - kept} to measure on; generate more"
            )
        order = torch.randperm(len(texts), generator=ctx.generator("split")).tolist()
        texts = [texts[index] for index in order]
        prompts = torch.tensor([prompt_lengths[index] for index in order])
        token_ids = usual_tokens(texts[:kept], self.vocabulary, tokenizer.all_special_ids)
        padded, used = _padded(texts)
        places, probabilities = self._targets(ctx, padded, token_ids)
        probabilities[~used] = 0

        target = checkpoint.load_model("float32")
        draft = with_layers(target, self.layers)
        del target
        head = draft.get_output_embeddings()
        reduce_vocabulary(draft, token_ids)
        fit(
            DraftDistillation(draft.train(), self.optimizer),
            ctx.progress_dir / "checkpoints",
            epochs=self.epochs,
            device=ctx.device,
            tensors=[padded[:kept], places[:kept], probabilities[:kept]],
            batch_size=self.batch_texts,
            seed=self.seed,
            precision=self.precision,
            progress=lambda done, total: ctx.progress(done, total, "step"),
        )
        draft.to(ctx.device).eval()  # type: ignore[arg-type] # its wrapper hides the method
        # Judged where it will be used: behind the prompt, on texts it was not trained on.
        judged = used & (torch.arange(padded.shape[1]) >= prompts[:, None] - 1)
        agreed = agreement(draft, padded[kept:], places[kept:], judged[kept:])
        inside = torch.isin(padded[kept:][used[kept:]], token_ids).float().mean()
        parameters = sum(one.numel() for one in draft.parameters())
        restore_vocabulary(draft, head)
        step = {"stage": "distill_draft", "layers": self.layers, "vocabulary": len(token_ids)}
        write_checkpoint(
            ctx.workdir,
            draft.to(getattr(torch, self.dtype)),
            tokenizer,
            [*checkpoint.history, step],
        )
        save_file({"token_ids": token_ids}, ctx.workdir / VOCABULARY_FILE)
        return {
            "agreement": agreed,
            "vocabulary": len(token_ids),
            "text_inside_vocabulary": float(inside),
            "parameters": parameters,
        }

    def _targets(
        self, ctx: StageContext, texts: Tensor, token_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The target's likely tokens for all (N, T) texts; resumes at the interrupted batch."""
        import torch

        from effllm.modules.drafting.distillation import likely_tokens

        model = ctx.input("model", Checkpoint).load_model(self.dtype, ctx.device)
        batches = texts.split(self.batch_texts)
        found = []
        for number, batch in enumerate(batches):
            name = f"targets-{number:04d}"
            stored = ctx.load_progress(name)
            if stored is None:
                places, probabilities = likely_tokens(model, batch, token_ids, self.top)
                stored = {"places": places.to(torch.int32), "probabilities": probabilities}
                ctx.save_progress(name, stored)
            found.append(stored)
            ctx.progress(number + 1, len(batches), "batch of the target")
        return (
            torch.cat([one["places"] for one in found]),
            torch.cat([one["probabilities"] for one in found]),
        )


def _padded(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(N, T) token ids, padded on the right, and (N, T) places whose next token is to be learnt."""
    import torch

    lengths = torch.tensor([len(one) for one in texts])
    padded = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None] - 1
