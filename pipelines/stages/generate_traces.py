"""Let a model write texts that a draft of it can learn from."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.pipelines.artifacts import Checkpoint, Corpus, Traces
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class GenerateTraces(Stage):
    """Greedy continuations of requests about passages of one split.

    Args:
        split: split of the text; not one that is reported on.
        prompts: number of texts.
        passage_tokens: length of the passage in each prompt.
        max_new_tokens: budget per text.
        batch_size: texts that are written together.
        dtype: of the model.
        seed: of the choice of passages.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "text": Corpus}
    OUTPUT: ClassVar = Traces

    split: str
    prompts: int
    passage_tokens: int
    max_new_tokens: int
    batch_size: int
    dtype: str
    seed: int

    def run(self, ctx: StageContext) -> Metrics:
        """`traces.safetensors`; resumes at the batch that was interrupted."""
        import torch
        from safetensors.torch import save_file

        from effllm.modules.decoding.packed import pack_linears
        from effllm.modules.drafting.requests import passage_requests
        from effllm.modules.drafting.traces import greedy_batch
        from effllm.pipelines.generate import encode_prompt, end_tokens

        checkpoint = ctx.input("model", Checkpoint)
        model, tokenizer = (
            checkpoint.load_model(self.dtype, ctx.device),
            checkpoint.load_tokenizer(),
        )
        pack_linears(model)
        prompts = passage_requests(
            ctx.input("text", Corpus).documents(self.split),
            lambda text, chat: encode_prompt(tokenizer, text, chat=chat),
            lambda ids: str(tokenizer.decode(ids)),
            count=self.prompts,
            tokens=self.passage_tokens,
            seed=self.seed,
        )
        ends = end_tokens(model, tokenizer)
        texts: list[list[int]] = []
        prompt_lengths: list[int] = []
        batches = _equal_lengths(prompts, self.batch_size)
        for number, batch in enumerate(batches):
            name = f"batch-{number:04d}"
            stored = ctx.load_progress(name)
            if stored is None:
                fresh = greedy_batch(model, torch.tensor(batch), self.max_new_tokens, ends)
                flat = torch.tensor([token for one in fresh for token in one], dtype=torch.int32)
                stored = {"tokens": flat, "lengths": torch.tensor([len(one) for one in fresh])}
                ctx.save_progress(name, stored)
            written = stored["tokens"].split(stored["lengths"].tolist())
            texts += [[*p, *w.tolist()] for p, w in zip(batch, written, strict=True)]
            prompt_lengths += [len(prompt) for prompt in batch]
            ctx.progress(number + 1, len(batches), "batch")
        tokens = torch.tensor([token for one in texts for token in one], dtype=torch.int32)
        save_file(
            {
                "tokens": tokens,
                "lengths": torch.tensor([len(one) for one in texts]),
                "prompt_lengths": torch.tensor(prompt_lengths),
            },
            ctx.workdir / "traces.safetensors",
        )
        return {"texts": len(texts), "new_tokens": len(tokens) - sum(prompt_lengths)}


def _equal_lengths(prompts: list[list[int]], batch_size: int) -> list[list[list[int]]]:
    """Batches of prompts of equal length, so that nothing is padded."""
    by_length: dict[int, list[list[int]]] = {}
    for prompt in prompts:
        by_length.setdefault(len(prompt), []).append(prompt)
    return [
        group[at : at + batch_size]
        for _, group in sorted(by_length.items())
        for at in range(0, len(group), batch_size)
    ]
