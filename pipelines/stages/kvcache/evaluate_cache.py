"""Read each text once, compress its cache in many ways, and see what each way does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import Dtype, PositiveInt, Word
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import LongPrompts, Windows
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.files import write_json
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext
from effllm.pipelines.stages.described import describe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from effllm.modules.data.long_prompts import LongPrompt
    from effllm.modules.kvcache.cache import CompressedCache
    from effllm.modules.kvcache.compression import Compression


@dataclass(frozen=True, kw_only=True)
class EvaluateCache(Stage):
    """Next-token distributions on text and answers to long prompts, for every arm on all examples.

    Args:
        arms: name -> compression; `dense` stores everything and is what bytes are compared with.
        continuation: last tokens of each window, read after its cache was compressed.
        question_inside: compress the cache of context and question, all but its last token;
            otherwise the question comes after compression.
        picture: arm whose kept channels are stored for a picture; null for none.
        dtype: of the computation; what is stored dense has the dtype of the arm.
    """

    PART_VERSIONS: ClassVar = {"ExpectedAttention": 2}  # 2: sinks take no attention from others
    INPUTS: ClassVar = {
        "model": Checkpoint,
        "windows": Many(Windows),
        "prompts": Many(LongPrompts),
    }
    OUTPUT: ClassVar = Predictions

    arms: dict[str, Compression]
    continuation: PositiveInt
    question_inside: bool
    picture: Word | None
    dtype: Dtype

    def __post_init__(self) -> None:
        if "dense" not in self.arms:
            raise ConfigError("evaluate_cache: bytes are compared with an arm named dense")

    def run(self, ctx: StageContext) -> Metrics:
        """`predictions.jsonl`: a row per example and arm; `arms.json`: what each arm is."""
        from safetensors.torch import save_file

        checkpoint = ctx.input("model", Checkpoint)
        model = checkpoint.load_model(self.dtype, ctx.device)
        tokenizer = checkpoint.load_tokenizer()
        windows = ctx.input_list("windows", Windows)
        texts = [text for one in windows for text in one.token_ids()]
        prompts = [
            one for found in ctx.input_list("prompts", LongPrompts) for one in found.prompts()
        ]
        self._check([len(text) for text in texts], len(prompts))
        rows = ctx.load_rows()
        done = len({row["id"] for row in rows})
        examples: list[Any] = [*texts, *prompts]
        for number, example in enumerate(examples):
            if number < done:
                continue
            if number < len(texts):
                rows += self._text(model, f"window-{number}", example.to(ctx.device))
            else:
                rows += self._prompt(model, tokenizer, example)
            ctx.save_rows(rows)
            ctx.progress(number + 1, len(examples), "example")
        if self.picture is not None:
            save_file(
                {"kept": self._kept(model, texts[0].to(ctx.device))},
                ctx.workdir / "kept.safetensors",
            )
        Predictions.write(ctx.workdir, rows, checkpoint)
        write_json(
            ctx.workdir / "arms.json",
            {
                "protocol": ", ".join(one.protocol for one in windows),
                "continuation": self.continuation,
                "question_inside": self.question_inside,
                "arms": {name: describe(arm) for name, arm in self.arms.items()},
            },
        )
        found: Metrics = {"examples": len(examples)}
        for name in self.arms:
            for key in ("kl", "score"):
                mine = [row[key] for row in rows if row["set"] == name and key in row]
                if mine:
                    found[f"{name}/{key}"] = sum(mine) / len(mine)
        return found

    @property
    def _observed(self) -> int:
        """Queries that the most curious arm looks at."""
        return max(int(arm.observed) for arm in self.arms.values())

    def _check(self, lengths: list[int], prompts: int) -> None:
        if not lengths and not prompts:
            raise ConfigError("neither windows nor prompts; give at least one of them")
        if min(lengths, default=self.continuation + 2) <= self.continuation + 1:
            raise ConfigError(
                f"windows of {min(lengths)} tokens leave no context before a "
                f"continuation of {self.continuation}; make them longer"
            )
        if self.picture is not None and not lengths:
            raise ConfigError("a picture is drawn of windows; set picture=null")

    def _text(
        self, model: PreTrainedModel, name: str, tokens: torch.Tensor
    ) -> list[dict[str, Any]]:
        from effllm.modules.kvcache.agreement import (
            UNCOMPRESSED,
            agreement,
            continue_with,
            read_prompt,
        )

        context = tokens[: -self.continuation].unsqueeze(0)
        cache = read_prompt(model, context, observed=self._observed)
        # The continuation's first token is predicted while the context is read, before anything is
        # compressed: it is fed, but does not count.
        fed, targets = tokens[-self.continuation : -1], tokens[-self.continuation + 1 :]
        dense = continue_with(model, cache.compressed(UNCOMPRESSED), fed.unsqueeze(0))[0]
        rows = []
        for arm, method in self.arms.items():
            compressed = cache.compressed(method)
            stored = compressed.stored()
            logits = continue_with(model, compressed, fed.unsqueeze(0))[0]
            found = agreement(logits, dense, targets)
            rows.append(
                {
                    "set": arm,
                    "id": name,
                    "group": "text",
                    "context_tokens": context.shape[1],
                    "bytes": sum(stored.values()),
                    "stored": stored,
                    **asdict(found),
                }
            )
        return rows

    def _prompt(
        self, model: PreTrainedModel, tokenizer: Any, prompt: LongPrompt
    ) -> list[dict[str, Any]]:
        import torch

        from effllm.modules.kvcache.agreement import answer_score, continue_with, read_prompt

        context = list(tokenizer(prompt.context)["input_ids"])
        question = list(tokenizer(prompt.question, add_special_tokens=False)["input_ids"])
        answers = [
            list(tokenizer(one, add_special_tokens=False)["input_ids"]) for one in prompt.answers
        ]
        if self.question_inside:
            context, question = context + question[:-1], question[-1:]
        expected = [token for answer in answers for token in answer]
        fed = torch.tensor([[*question, *expected[:-1]]], device=model.device)
        cache = read_prompt(
            model, torch.tensor([context], device=model.device), observed=self._observed
        )
        truth = torch.tensor(expected, device=model.device)
        rows = []
        for arm, method in self.arms.items():
            compressed = cache.compressed(method)
            held = compressed.nbytes()
            logits = continue_with(model, compressed, fed)[0, -len(expected) :]
            rows.append(
                {
                    "set": arm,
                    "id": prompt.id,
                    "group": prompt.task,
                    "length": prompt.length,
                    "context_tokens": len(context),
                    "bytes": held,
                    "score": answer_score(logits, [len(one) for one in answers], truth),
                }
            )
        return rows

    def _kept(self, model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
        """(S, D) bool: channels kept in the middle layer's first head, for the first window."""
        from effllm.kernels.packed_keys import unpack_flags
        from effllm.modules.kvcache.agreement import read_prompt

        assert self.picture is not None
        context = tokens[: -self.continuation].unsqueeze(0)
        cache: CompressedCache = read_prompt(model, context, observed=self._observed)
        layer = cache.compressible[len(cache.layers) // 2].compressed(self.arms[self.picture])
        assert layer.past is not None
        return unpack_flags(layer.past[0].rows["mask"][0, 0], layer.past[0].channels).contiguous()
