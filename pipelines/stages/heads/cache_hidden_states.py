"""Read texts with their target once, and keep the last hidden state of every token."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.errors import ArtifactError, DataError
from effllm.modules.ranges import Dtype, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.decoding import Traces
from effllm.pipelines.artifacts.heads import HiddenStates, describe_target
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class CacheHiddenStates(Stage):
    """Last hidden states of texts that a target wrote, cut where they begin to loop.

    Training and judging heads need nothing else of the target.

    Args:
        loop_tokens: a stretch of so many tokens that comes twice in an answer is a loop.
        least_tokens: texts with fewer tokens of answer left are left out.
        shard_tokens: tokens per file.
        batch_texts: texts per pass.
        dtype: of the passes and of the stored states: that of decoding, or heads learn from states
            that they never meet.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "traces": Traces}
    OUTPUT: ClassVar = HiddenStates
    VOLATILE: ClassVar = frozenset({"batch_texts"})

    loop_tokens: PositiveInt
    least_tokens: PositiveInt
    shard_tokens: PositiveInt
    batch_texts: PositiveInt
    dtype: Dtype

    def run(self, ctx: StageContext) -> Metrics:
        """`shard-*.safetensors`; resumes at the shard that was interrupted."""
        import torch

        from effllm.modules.heads.states import before_loop, last_hidden
        from effllm.modules.heads.target import frozen_weights

        checkpoint = ctx.input("model", Checkpoint)
        model = checkpoint.load_model(self.dtype, ctx.device, ctx.device_map)
        traces = ctx.input("traces", Traces).load()
        texts, prompts, looped = [], [], 0
        for tokens, prompt in zip(traces["tokens"], traces["prompt_lengths"], strict=True):
            start = int(prompt)
            kept = before_loop(tokens[start:].tolist(), self.loop_tokens)
            looped += kept < len(tokens) - start
            if kept >= self.least_tokens:
                texts.append(tokens[: start + kept].tolist())
                prompts.append(start)
        if not texts:
            raise DataError(
                f"none of {len(traces['tokens'])} texts has {self.least_tokens} tokens of answer "
                "before it loops; write longer ones, or set least_tokens lower"
            )
        weights = frozen_weights(model)
        size = sum(map(len, texts)) * weights[0].shape[1] * weights[0].element_size()
        free = shutil.disk_usage(ctx.workdir).free
        if size > free:
            raise ArtifactError(
                f"the states of {sum(map(len, texts)):,} tokens take "
                f"{size / 1e9:.1f} GB, the disk has {free / 1e9:.1f}; write fewer texts"
            )
        shards = _shards([len(one) for one in texts], self.shard_tokens)
        for number, mine in enumerate(shards):
            name = f"shard-{number:04d}"
            if ctx.load_progress(name) is None:
                hidden = []
                for first in range(0, len(mine), self.batch_texts):
                    part = mine[first : first + self.batch_texts]
                    hidden += last_hidden(model, [texts[index] for index in part])
                shard = {
                    "tokens": torch.tensor([one for i in mine for one in texts[i]]).int(),
                    "hidden": torch.cat(hidden),
                    "lengths": torch.tensor([len(texts[index]) for index in mine]),
                    "prompt_lengths": torch.tensor([prompts[index] for index in mine]),
                }
                ctx.save_progress(name, shard)
            ctx.keep_progress(name, f"{name}.safetensors")
            ctx.progress(number + 1, len(shards), "shard")
        about = describe_target(checkpoint) | {"dtype": self.dtype}
        HiddenStates.write(ctx.workdir, model, weights, about)
        return {
            "texts": len(texts),
            "tokens": sum(map(len, texts)),
            "answer_tokens": sum(map(len, texts)) - sum(prompts),
            "looping_texts": looped / len(traces["tokens"]),
        }


def _shards(lengths: list[int], tokens: int) -> list[list[int]]:
    """Numbers of texts, so many tokens together; a longer text is a shard of its own."""
    found: list[list[int]] = []
    room = 0
    for text, length in enumerate(lengths):
        if not found or length > room:
            found.append([])
            room = tokens
        found[-1].append(text)
        room -= length
    return found
