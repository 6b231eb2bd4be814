"""Time per decoded token and of the prompt, for dense and compressed caches, taking turns."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import Dtype, NonEmpty, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Corpus
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.files import write_json
from effllm.pipelines.stage import Metrics, Stage, StageContext
from effllm.pipelines.stages.described import describe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

    from effllm.modules.kvcache.attention import Reading
    from effllm.modules.kvcache.compression import Compression


class DenseArm(TypedDict):
    """transformers' dynamic cache, and what reads it."""

    method: None
    reading: Literal["sdpa", "grouped"]


class CompressedArm(TypedDict):
    """A compressed cache, and what reads it."""

    method: Compression
    reading: Reading


@dataclass(frozen=True, kw_only=True)
class CacheBench(Stage):
    """All arms after the same prompt; the order turns with every repeat.

    Args:
        arms: name -> `{method, reading}`; a null method is transformers' dynamic cache, read by its
            `sdpa` or by our decoder's (`grouped`). `dense` is what times are compared with.
        lengths: tokens of the prompt.
        steps: decoded tokens per repeat.
        repeats: of everything; one more warms up.
        dtype: of the model.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "text": Corpus}
    OUTPUT: ClassVar = Predictions
    TIMED: ClassVar = True

    arms: dict[str, DenseArm | CompressedArm]
    lengths: NonEmpty[PositiveInt]
    steps: PositiveInt
    repeats: PositiveInt
    dtype: Dtype

    def __post_init__(self) -> None:
        if "dense" not in self.arms:
            raise ConfigError("cache_bench: times are compared with an arm named dense")

    def run(self, ctx: StageContext) -> Metrics:
        """`predictions.jsonl`: a row per length, arm and repeat."""
        import torch

        from effllm.modules.inference.packed import pack_linears

        checkpoint = ctx.input("model", Checkpoint)
        model = checkpoint.load_model(self.dtype, ctx.device)
        pack_linears(model)
        tokenizer = checkpoint.load_tokenizer()
        tokenizer.model_max_length = 10**9
        text = "\n\n".join(one.text for one in ctx.input("text", Corpus).documents("test"))
        wanted = max(self.lengths)
        ids = tokenizer(text[: 20 * wanted])["input_ids"]
        tokens = torch.tensor([(ids * (wanted // len(ids) + 1))[:wanted]], device=ctx.device)
        rows = ctx.load_rows()
        done = {row["length"] for row in rows}
        for number, length in enumerate(self.lengths, start=1):
            if length not in done:
                rows += self._measure(model, tokens[:, :length])
                ctx.save_rows(rows)
            ctx.progress(number, len(self.lengths), "length")
        Predictions.write(ctx.workdir, rows, checkpoint)
        write_json(
            ctx.workdir / "arms.json",
            {
                name: {"method": describe(arm["method"]), "reading": arm["reading"]}
                for name, arm in self.arms.items()
            },
        )
        found: Metrics = {}
        for name in self.arms:
            mine = [row["decode_seconds"] for row in rows if row["set"] == name]
            found[f"{name}/decode_ms_per_token"] = 1000 * sum(mine) / len(mine) / self.steps
        return found

    def _measure(self, model: PreTrainedModel, prompt: torch.Tensor) -> list[dict[str, Any]]:
        """Rows of one length.

        Prompts are read twice; every repeat decodes after the second reading's cache, which then
        forgets the steps.
        """
        from effllm.modules.timing import taking_turns

        names = list(self.arms)
        prefill: dict[str, list[float]] = {name: [] for name in names}
        rows, caches = [], {}
        for repeat in range(min(self.repeats, 2)):
            for name in taking_turns(names, repeat):
                caches[name], seconds = self._read(model, prompt, name)
                prefill[name].append(seconds)
        for repeat in range(self.repeats + 1):
            for name in taking_turns(names, repeat):
                seconds = self._decode(model, caches[name], prompt, name)
                if repeat:
                    rows.append(
                        {
                            "set": name,
                            "id": f"{prompt.shape[1]}-{repeat}",
                            "length": prompt.shape[1],
                            "decode_seconds": seconds,
                            "prefill_seconds": min(prefill[name]),
                            "bytes": _held(caches[name]),
                        }
                    )
        return rows

    def _read(self, model: PreTrainedModel, prompt: torch.Tensor, name: str) -> tuple[Cache, float]:
        import torch
        from transformers.cache_utils import DynamicCache

        from effllm.modules.kvcache.cache import CompressedCache
        from effllm.modules.timing import seconds_of

        method = self.arms[name]["method"]
        cache: Cache
        if method is None:
            cache = DynamicCache(config=model.config)
        else:
            cache = CompressedCache(model.config, method)

        def work() -> None:
            model(input_ids=prompt, past_key_values=cache, logits_to_keep=1)

        with torch.no_grad(), self._attending(model, name):
            return cache, seconds_of(work, model.device)

    def _attending(self, model: PreTrainedModel, name: str) -> AbstractContextManager[None]:
        """The attention function of an arm."""
        from effllm.modules.inference.attention import grouped_queries
        from effllm.modules.kvcache.attention import attached

        arm: Mapping[str, Any] = self.arms[name]
        if arm["method"] is not None:
            return attached(model, arm["reading"])
        return grouped_queries(model) if arm["reading"] == "grouped" else nullcontext()

    def _decode(
        self, model: PreTrainedModel, cache: Cache, prompt: torch.Tensor, name: str
    ) -> float:
        """Seconds of some steps of one token; they are forgotten afterwards."""
        import torch

        from effllm.modules.timing import seconds_of

        def work() -> None:
            for step in range(self.steps):
                model(input_ids=prompt[:, step : step + 1], past_key_values=cache)

        with torch.no_grad(), self._attending(model, name):
            seconds = seconds_of(work, model.device)
        cache.crop(-self.steps)
        return seconds


def _held(cache: Cache) -> int:
    from effllm.modules.kvcache.cache import CompressedCache
    from effllm.modules.kvcache.segment import stored_bytes

    if isinstance(cache, CompressedCache):
        return cache.nbytes()
    layers: list[Any] = list(cache.layers)  # transformers' union has kinds without states
    return stored_bytes(
        state for layer in layers for state in (layer.keys, layer.values) if state is not None
    )
