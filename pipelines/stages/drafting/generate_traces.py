"""Let a model write texts that a draft of it can learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from effllm.modules.ranges import Dtype, PositiveInt, Seed, Word
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Corpus
from effllm.pipelines.artifacts.decoding import Traces
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GenerateTraces(Stage):
    """Greedy continuations of requests about passages of one split.

    Args:
        split: split of the text; not one that is reported on.
        prompts: number of texts.
        passage_tokens: length of the passage in each prompt.
        max_new_tokens: budget per text.
        top: likely tokens of the model that are noted at every place.
        batch_size: texts that are written together.
        dtype: of the model.
        seed: of the choice of passages.
    """

    VERSION: ClassVar[int] = 2  # 2: with the likely tokens
    INPUTS: ClassVar = {"model": Checkpoint, "text": Corpus}
    OUTPUT: ClassVar = Traces

    split: Word
    prompts: PositiveInt
    passage_tokens: PositiveInt
    max_new_tokens: PositiveInt
    top: PositiveInt
    batch_size: PositiveInt
    dtype: Dtype
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`traces.safetensors`; resumes at the batch that was interrupted."""
        import torch

        from effllm.modules.decoding.joining import encode_prompt, end_tokens
        from effllm.modules.drafting.requests import passage_requests
        from effllm.modules.drafting.traces import write_greedily
        from effllm.modules.inference.packed import pack_linears

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
        batches = _equal_lengths(prompts, self.batch_size)
        parts = []
        for number, batch in enumerate(batches):
            name = f"batch-{number:04d}"
            stored = ctx.load_progress(name)
            if stored is None:
                found = write_greedily(
                    model, torch.tensor(batch), self.max_new_tokens, ends, self.top
                )
                stored = _flat(batch, *found)
                ctx.save_progress(name, stored)
            parts.append(stored)
            ctx.progress(number + 1, len(batches), "batch")
        traces = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        Traces.write(ctx.workdir, traces)
        prompt_tokens = int(traces["prompt_lengths"].sum())
        return {"texts": len(prompts), "new_tokens": len(traces["tokens"]) - prompt_tokens}


def _flat(
    prompts: list[list[int]], fresh: list[list[int]], likely: Tensor, probabilities: Tensor
) -> dict[str, Tensor]:
    """Texts of one batch in a row; the last token of each has nothing likely after it."""
    import torch

    texts = [[*prompt, *new] for prompt, new in zip(prompts, fresh, strict=True)]
    padded = torch.nn.functional.pad(likely, (0, 0, 0, 1))
    chances = torch.nn.functional.pad(probabilities, (0, 0, 0, 1))
    for row, text in enumerate(texts):
        chances[row, len(text) - 1 :] = 0
    return {
        "tokens": torch.tensor([token for text in texts for token in text], dtype=torch.int32),
        "lengths": torch.tensor([len(text) for text in texts]),
        "prompt_lengths": torch.tensor([len(prompt) for prompt in prompts]),
        "likely": torch.cat([padded[i, : len(t)] for i, t in enumerate(texts)]).to(torch.int32),
        "probabilities": torch.cat([chances[i, : len(t)] for i, t in enumerate(texts)]),
    }


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
