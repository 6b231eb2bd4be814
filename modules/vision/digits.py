"""The handwritten digits that come with scikit-learn: 1,797 pictures of 8 x 8 pixels, ten classes.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), its test set.
"""

from typing import Literal

import torch
from torch import Tensor

Split = Literal["train", "heldout", "test"]
SIZES: dict[Split, int] = {"train": 900, "heldout": 200, "test": 697}
SIDE, CLASSES = 8, 10


def digits(split: Split) -> tuple[Tensor, Tensor]:
    """Pictures and classes of a split; splits share no picture.

    Returns:
        (N, 1, 8, 8) float32 from -1 to 1, and (N,) int64.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    parts = dict(zip(SIZES, order.split(list(SIZES.values())), strict=True))
    pixels = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, SIDE, SIDE) / 8 - 1
    return pixels[parts[split]], torch.tensor(labels)[parts[split]]
