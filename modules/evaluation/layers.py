"""Compare a changed model with the original, layer by layer.

All models are compared on the same inputs, those of the original model on held-out text: layer
errors measured on each model's own inputs cannot rank models.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from effllm.modules.calibration.statistics import output_error


@dataclass(frozen=True)
class LayerComparison:
    """One layer of a changed model against the original.

    Attributes:
        error: relative output error on the original model's held-out inputs.
        sparsity: fraction of exact zeros.
        near_zero: fraction of |V| below a tenth of the original's standard deviation.
    """

    error: float
    sparsity: float
    near_zero: float


def compare_layer(original: Tensor, changed: Tensor, gram: Tensor) -> LayerComparison:
    """Compare two (R, C) weights given the (C, C) Gram matrix of the inputs."""
    weight, value = original.to(torch.float32), changed.to(torch.float32)
    return LayerComparison(
        error=output_error(weight, value, gram),
        sparsity=float((value == 0).float().mean()),
        near_zero=float((value.abs() < 0.1 * weight.std()).float().mean()),
    )


def weight_histogram(weight: Tensor, *, limit: float, bins: int) -> list[int]:
    """Counts of a weight's entries in `bins` equal bins over [-limit, limit]; the rest is cut."""
    counts, _ = np.histogram(weight.float().numpy(), bins=bins, range=(-limit, limit))
    return [int(count) for count in counts]
