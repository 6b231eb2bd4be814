"""Round to nearest: each row of a matrix on a grid of its own."""

from torch import Tensor


def round_to_nearest(weight: Tensor, bits: int) -> Tensor:
    """Nearest points of a symmetric grid.

    Args:
        weight: (R, C).
        bits: of a weight, at least 2; the grid has 2**bits - 1 points in each row.

    Returns:
        (R, C) points, of the weight's type.
    """
    widest = weight.abs().amax(dim=1, keepdim=True)
    step = (widest / (2 ** (bits - 1) - 1)).clamp_min(1e-12)
    return (weight / step).round() * step
