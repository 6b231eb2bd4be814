"""From a cost matrix to a permutation: Sinkhorn while learning, an exact assignment at the end.

C[i, j] is the cost of putting channel i into slot j; everything is batched over blocks. Row and
column shifts of C never change the answer, so costs are double-centred and scaled first, which
gives the temperature a meaning.
"""

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from effllm.modules.errors import NumericalError

_ITERATIONS = 50
_CLOSE = 1e-2  # error of the marginals that ends the iterations


def normalised(costs: Tensor) -> Tensor:
    """(G, b, b) costs without row and column means, of unit deviation in each block.

    Source: ours; the paper normalises and does not say how.
    """
    rows, columns = costs.mean(dim=2, keepdim=True), costs.mean(dim=1, keepdim=True)
    centred = costs - rows - columns + costs.mean(dim=(1, 2), keepdim=True)
    return centred / centred.std(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def sinkhorn(costs: Tensor, temperature: float, *, iterations: int = _ITERATIONS) -> Tensor:
    """The doubly stochastic P that minimises <C, P> + temperature * sum P (log P - 1).

    The gradient is that of the converged solution, solved for and not unrolled: its memory does
    not grow with the iterations.

    Args:
        costs: (G, b, b) float32 or float64.
        temperature: the paper's epsilon; below 0.1 of the deviation of C the plan barely moves.
        iterations: at most; fewer if the marginals are within 1 %.

    Returns:
        (G, b, b).

    Source: arXiv 2601.22980, equations 3 to 5; implicit gradient after Luise et al. (2018).
    Deviates: the paper gives no number of iterations.
    """
    return _Sinkhorn.apply(costs, temperature, iterations)


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Tensor, temperature: float, iterations: int) -> Tensor:
        scaled = -costs / temperature
        rows = torch.zeros_like(costs[:, :, :1])
        for _ in range(iterations):
            columns = -(scaled + rows).logsumexp(dim=1, keepdim=True)
            sums = (scaled + columns).logsumexp(dim=2, keepdim=True)
            off = (rows + sums).exp() - 1  # of the rows, now that the columns are right
            rows = -sums
            if float(off.abs().max()) < _CLOSE:
                break
        columns = -(scaled + rows).logsumexp(dim=1, keepdim=True)
        plan = (scaled + rows + columns).exp()
        ctx.save_for_backward(plan)
        ctx.temperature = temperature
        return plan

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (plan,) = ctx.saved_tensors
        blocks, size, _ = plan.shape
        weighted = plan * grads[0]
        eye = torch.eye(size, dtype=plan.dtype, device=plan.device).expand(blocks, size, size)
        left = torch.cat([eye * plan.sum(2, keepdim=True), plan], dim=2)
        right = torch.cat([plan.mT, eye * plan.sum(1)[:, :, None]], dim=2)
        system = torch.cat([left, right], dim=1)
        # Singular along (1, -1): the direction that shifts rows against columns changes nothing.
        null = torch.cat([torch.ones(size), -torch.ones(size)]).to(plan) / size
        sums = torch.cat([weighted.sum(dim=2), weighted.sum(dim=1)], dim=1)
        solved = torch.linalg.solve(system + torch.outer(null, null), sums[:, :, None])
        rows, columns = solved[:, :size], solved[:, size:].mT
        return (plan * (rows + columns) - weighted) / ctx.temperature, None, None


def assign(costs: Tensor) -> Tensor:
    """The permutation of least cost in each block.

    Args:
        costs: (G, b, b).

    Returns:
        (G, b) int64: the channel of each slot.

    Raises:
        NumericalError: if a cost is not finite.
    """
    if not torch.isfinite(costs).all():
        raise NumericalError(
            "costs of a permutation are not finite; lower learning_rate, or raise the temperature"
        )
    cheapest = costs.argmin(dim=2)  # (G, b) slot of each channel
    found = torch.empty_like(cheapest)
    for block, slots in enumerate(cheapest):
        if slots.unique().numel() < len(slots):  # or the cheapest slots are a permutation already
            slots = torch.from_numpy(linear_sum_assignment(costs[block].detach().cpu().numpy())[1])
        found[block, slots] = torch.arange(len(slots), device=found.device)
    return found
