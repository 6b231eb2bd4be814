"""Quality of decoded text beside its speed: likelihood, repetition, agreement."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel


@torch.no_grad()
def continuation_nll(model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int]) -> float:
    """Mean negative log-likelihood of tokens after a prompt, nats per token."""
    ids = torch.tensor([[*prompt, *tokens]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(tokens) + 1).logits[0, :-1]
    return float(cross_entropy(logits.float(), ids[0, len(prompt) :]))


def distinct_share(tokens: Sequence[int], n: int = 2) -> float:
    """Distinct n-grams over all n-grams; 1 for texts shorter than n."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_repeat(tokens: Sequence[int]) -> int:
    """Length of the longest run of tokens that occurs twice, overlaps included; 0 for none."""
    length = 0
    while _occurs_twice(tokens, length + 1):
        length += 1  # a repeat of n + 1 tokens holds one of n
    return length


def _occurs_twice(tokens: Sequence[int], length: int) -> bool:
    seen = set()
    for start in range(len(tokens) - length + 1):
        run = tuple(tokens[start : start + length])
        if run in seen:
            return True
        seen.add(run)
    return False


TokenClass = Literal["digits", "words", "punctuation", "space"]


def token_class(text: str) -> TokenClass:
    """What a token is made of; one with digits counts as digits, one with letters as a word."""
    if any(one.isdigit() for one in text):
        return "digits"
    if any(one.isalpha() for one in text):
        return "words"
    return "punctuation" if text.strip() else "space"


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Place of the first different token; None if one text continues the other or both agree."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return None
