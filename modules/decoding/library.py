"""transformers' own decoding, as baseline and oracle: generate, prompt lookup, assisted."""

import time
from typing import Literal

import torch
from transformers import GenerationConfig, PreTrainedModel

Kind = Literal["plain", "lookup", "assisted"]


def generate(
    model: PreTrainedModel,
    prompt: list[int],
    max_new_tokens: int,
    ends: frozenset[int],
    *,
    kind: Kind = "plain",
    drafted: int = 8,
    draft: PreTrainedModel | None = None,
) -> tuple[list[int], float]:
    """Greedy tokens and the seconds they took, prompt included.

    The model's own generation settings, such as a repetition penalty, are left out: all arms decode
    the same law.

    Args:
        model: the target.
        prompt: token ids.
        max_new_tokens: budget.
        ends: token ids that end the text.
        kind: `plain`, `lookup` (its prompt lookup), or `assisted` (by `draft`).
        drafted: tokens drafted per round; the confidence threshold is 0, so all are drafted.
        draft: for `assisted`.
    """
    options: dict[str, object] = {}
    if kind == "lookup":
        options["prompt_lookup_num_tokens"] = drafted
    if kind == "assisted":
        assert draft is not None
        draft.generation_config.num_assistant_tokens = drafted
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
        options["assistant_model"] = draft
    ids = torch.tensor([prompt], device=model.device)
    own: GenerationConfig = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        started = time.perf_counter()
        output = model.generate(  # type: ignore[operator] # a mix-in's method
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0),
            **options,
        )
        seconds = time.perf_counter() - started
    finally:
        model.generation_config = own
    return output[0, len(prompt) :].tolist(), seconds
