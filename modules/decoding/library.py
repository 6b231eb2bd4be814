"""transformers' own decoding, as baseline and oracle: generate, prompt lookup, assisted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from effllm.modules.decoding.drafts import FirstLayers, Given
from effllm.modules.decoding.joining import end_tokens
from effllm.modules.decoding.records import Generation
from effllm.modules.errors import ConfigError
from effllm.modules.ranges import PositiveInt
from effllm.modules.timing import now

Kind = Literal["plain", "lookup", "assisted"]


@dataclass(frozen=True, kw_only=True)
class Library:
    """One of transformers' ways to decode; joined and described as a `Decoder` is.

    Args:
        kind: `plain`, `lookup` (its prompt lookup), or `assisted` (by `draft`).
        drafted: tokens drafted per round.
        draft: for `assisted`.

    Raises:
        ConfigError: for `assisted` without a draft model, or the others with one.
    """

    kind: Kind = "plain"
    drafted: PositiveInt = 8
    draft: Given | FirstLayers | None = None

    def __post_init__(self) -> None:
        expected = Given | FirstLayers if self.kind == "assisted" else type(None)
        if not isinstance(self.draft, expected):
            raise ConfigError(
                f"library: {self.kind} with draft {type(self.draft).__name__}; `assisted` needs a "
                "draft model, the others take none"
            )

    def join(self, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "LibrarySession":
        """What decodes texts of a target."""
        draft = None if self.draft is None else self.draft.of(target)
        ends = end_tokens(target, tokenizer)
        return LibrarySession(target, ends, kind=self.kind, drafted=self.drafted, draft=draft)

    def about(self, target: PreTrainedModel) -> dict[str, Any]:
        """What it is, as plain data for reports, under the keys of `Decoder.about`."""
        return {
            "library": self.kind,
            "drafted": None if self.kind == "plain" else self.drafted,
            "lossless": True,
            "proposer": None,
            "verifier": None,
            "draft": None if self.draft is None else self.draft.about(target),
        }


@dataclass(frozen=True)
class LibrarySession:
    """Decodes texts of one target as transformers does, greedily.

    The model's own generation settings, such as a repetition penalty, are left out: all arms decode
    the same law.

    Args:
        target: the model whose text is wanted.
        ends: token ids that end a text.
        kind: as of `Library`.
        drafted: tokens drafted per round; the confidence threshold is 0, so all are drafted.
        draft: for `assisted`.
    """

    target: PreTrainedModel
    ends: frozenset[int]
    kind: Kind = "plain"
    drafted: int = 8
    draft: PreTrainedModel | None = None

    def decode(self, prompt: Sequence[int], max_new_tokens: int, *, seed: int = 0) -> Generation:
        """As of `Session`; nothing is drawn, and no more than the whole time is known."""
        options: dict[str, object] = {}
        if self.kind == "lookup":
            options["prompt_lookup_num_tokens"] = self.drafted
        if self.kind == "assisted":
            assert self.draft is not None
            self.draft.generation_config.num_assistant_tokens = self.drafted
            self.draft.generation_config.num_assistant_tokens_schedule = "constant"
            self.draft.generation_config.assistant_confidence_threshold = 0.0
            options["assistant_model"] = self.draft
        model, ids = self.target, torch.tensor([list(prompt)], device=self.target.device)
        own: GenerationConfig = model.generation_config
        model.generation_config = GenerationConfig()
        try:
            started = now(model.device)
            output = model.generate(  # type: ignore[operator] # a mix-in's method
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(self.ends) or None,
                pad_token_id=min(self.ends, default=0),
                **options,
            )
            seconds = now(model.device) - started
        finally:
            model.generation_config = own
        tokens = output[0, len(prompt) :].tolist()
        stop = "eos" if tokens and tokens[-1] in self.ends else "length"
        return Generation(tokens, None, stop, [], prefill_seconds=None, decode_seconds=seconds)
