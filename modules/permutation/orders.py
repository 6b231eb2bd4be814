"""Orders of channels, and the N:M groups that they make.

An order is an index vector: `order[j]` is the original channel at position j, so that
`W[:, order]` is the permuted weight and `(X P)(W P)^T == X W^T`. Position j lies in group
j // group. Only the partition of channels into groups decides a mask; `canonical` picks one order
of each partition, in which a mask's ties go to the lower channel whatever the search did.
"""

import torch
from torch import Tensor

from effllm.modules.sparsity.masks import nm_mask
from effllm.modules.sparsity.patterns import Grouped


def inverse(order: Tensor) -> Tensor:
    """(n,) order that undoes another: `order[inverse(order)]` counts up."""
    undone = torch.empty_like(order)
    undone[order] = torch.arange(len(order), dtype=order.dtype, device=order.device)
    return undone


def require_order(order: Tensor, columns: int, where: str) -> None:
    """Refuse what is not an order of so many channels.

    Raises:
        ValueError: names the place, and what was found.
    """
    if order.shape != (columns,) or not torch.equal(
        order.long().sort().values, torch.arange(columns, device=order.device)
    ):
        raise ValueError(
            f"{where}: expected each of {columns} channels once, found "
            f"{order.numel()} entries, {order.unique().numel()} of them different"
        )


def canonical(order: Tensor, group: int) -> Tensor:
    """The order of the same groups with channels and groups ascending; (n,) -> (n,)."""
    groups = order.reshape(-1, group).sort(dim=1).values
    return groups[groups[:, 0].argsort()].reshape(-1)


def ordered_mask(score: Tensor, order: Tensor, pattern: Grouped) -> Tensor:
    """The pattern's mask under an order, back in the original order of channels.

    Args:
        score: (R, C) float, original order.
        order: (C,) order.
        pattern: N:M.

    Returns:
        (R, C) bool, True = kept.
    """
    mask = nm_mask(score[:, order], keep=pattern.keep, group=pattern.group)
    return mask[:, inverse(order)]
