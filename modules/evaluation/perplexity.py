"""Perplexity over fixed windows.

Each window of T tokens is scored on its own: T - 1 predictions, context limited to the window.
Perplexity is the exponential of the mean over all predictions, which for equal windows is the
field's mean over windows. The sums per window are kept, so that differences between models can be
paired.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel


@torch.no_grad()
def window_nll(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Mean negative log-likelihood per window, in nats per token.

    Args:
        model: causal language model.
        windows: (N, T) token ids without padding.
        batch_size: windows per forward pass; no influence beyond rounding.
        progress: called with the number of windows done.

    Returns:
        (N,) float64.
    """
    means = []
    for batch in windows.split(batch_size):
        batch = batch.to(model.device)
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        for row, targets in zip(logits, batch[:, 1:], strict=True):  # one window: less memory
            means.append(cross_entropy(row.float(), targets).double().cpu())
        progress(len(means))
    return torch.stack(means)


def perplexity(nll: Tensor) -> float:
    """Exp of the mean of (N,) window means; infinity when it overflows."""
    mean = float(nll.double().mean())
    return math.exp(mean) if mean < 700 else math.inf
