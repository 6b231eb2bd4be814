"""What compressing a cache does to a model: next-token distributions, and answers to questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import PreTrainedModel

from effllm.modules.kvcache.attention import Reading, attached
from effllm.modules.kvcache.cache import CompressedCache
from effllm.modules.kvcache.compression import Compression
from effllm.modules.kvcache.formats.base import Dense

UNCOMPRESSED = Compression(keys=Dense(), values=Dense(), protect_last=0)


@torch.no_grad()
def read_prompt(model: PreTrainedModel, tokens: Tensor, *, observed: int) -> CompressedCache:
    """The dense cache of a (B, S) prompt, ready to be compressed in many ways.

    Args:
        model: reads the prompt.
        tokens: (B, S) ids.
        observed: last queries that are remembered for methods that look at them.
    """
    method = Compression(keys=Dense(), values=Dense(), protect_last=0, window=observed)
    cache = CompressedCache(model.config, method, automatic=False)
    with attached(model):
        model(input_ids=tokens, past_key_values=cache, logits_to_keep=1)
    return cache


@torch.no_grad()
def continue_with(
    model: PreTrainedModel, cache: CompressedCache, tokens: Tensor, reading: Reading = "packed"
) -> Tensor:
    """(B, n, V) float32 logits after each of (B, n) tokens that follow a cache, which grows."""
    with attached(model, reading):
        logits: Tensor = model(input_ids=tokens, past_key_values=cache).logits
    return logits.float()


@dataclass(frozen=True)
class Agreement:
    """How near next-token distributions are to those of the dense cache, over one continuation.

    Attributes:
        kl: mean KL(dense || compressed), nats per token.
        agree: share of tokens whose most likely successor is the same.
        nll: mean negative log-likelihood of the true next token, nats.
    """

    kl: float
    agree: float
    nll: float


def agreement(logits: Tensor, dense: Tensor, targets: Tensor) -> Agreement:
    """Compare (n, V) logits with those of the dense cache; `targets` (n,) are the true tokens."""
    ours, theirs = log_softmax(logits, dim=-1), log_softmax(dense, dim=-1)
    kl = kl_div(ours, theirs, log_target=True, reduction="none").sum(dim=-1)
    same = logits.argmax(dim=-1) == dense.argmax(dim=-1)
    return Agreement(
        float(kl.mean().clamp_min(0.0)),
        float(same.float().mean()),
        float(cross_entropy(logits, targets)),
    )


def answer_score(logits: Tensor, lengths: Sequence[int], tokens: Tensor) -> float:
    """Share of answers that greedy decoding would write, each after the true ones before it.

    For a single answer this is whether greedy decoding starts with it.

    Args:
        logits: (n, V), the first row predicts the first token of the first answer.
        lengths: tokens of each answer; they sum to n.
        tokens: (n,) of all answers.
    """
    right = (logits.argmax(dim=-1) == tokens).split(list(lengths))
    return sum(bool(one.all()) for one in right) / len(lengths)
