"""How a learnable order prunes a weight, and how the gradient comes back to its costs.

Blocks of b neighbouring positions of a first order are permuted within themselves. P[i, j] says
how much of the block's channel i goes to slot j. Every mode returns the pruned weight in the
original order of channels; they differ in forward (soft or hard) and in backward.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from effllm.kernels.exchange import exchange_gains, rivals
from effllm.modules.permutation.orders import inverse, ordered_mask
from effllm.modules.sparsity.masks import nm_mask
from effllm.modules.sparsity.patterns import Grouped

Mode = Literal["soft", "ste_value", "ste_mask", "counterfactual"]


def refine(first: Tensor, inner: Tensor) -> Tensor:
    """(n,) order: the blocks of `first`, each permuted by its row of (G, b) `inner`."""
    return first.reshape(inner.shape).gather(1, inner).reshape(-1)


def prune_soft(
    weight: Tensor, score: Tensor, plan: Tensor, first: Tensor, pattern: Grouped
) -> Tensor:
    """(m(S P) * (W P)) P^T with a doubly stochastic P: permute, prune, permute back.

    Args:
        weight: (R, n) float.
        score: (R, n) float of the pruner.
        plan: (G, b, b), differentiable.
        first: (n,) order whose blocks are permuted.
        pattern: N:M.

    Returns:
        (R, n), original order.

    Source: arXiv 2601.22980, figure 4.
    """
    blocks, size, _ = plan.shape
    shape = (len(weight), blocks, size)
    mixed = torch.einsum("rgi,gij->rgj", weight[:, first].reshape(shape), plan)
    with torch.no_grad():
        mixed_score = torch.einsum("rgi,gij->rgj", score[:, first].reshape(shape), plan)
        mask = nm_mask(mixed_score.flatten(1), keep=pattern.keep, group=pattern.group)
    pruned = torch.einsum("rgj,gij->rgi", mixed * mask.reshape(shape), plan)
    return pruned.flatten(1)[:, inverse(first)]


def prune_hard(
    weight: Tensor,
    score: Tensor,
    plan: Tensor,
    inner: Tensor,
    first: Tensor,
    pattern: Grouped,
    mode: Mode,
    curvature: Tensor | None = None,
) -> Tensor:
    """W * (mask under the hard order); the gradient goes to the plan as `mode` says.

    Args:
        weight: (R, n) float, gets no gradient.
        score: (R, n) float of the pruner.
        plan: (G, b, b) soft plan; only its gradient matters.
        inner: (G, b) hard permutation of each block.
        first: (n,) order whose blocks are permuted.
        pattern: N:M.
        mode: `ste_value` (mask held fixed), `ste_mask` (PermLLM: a softmax of the scores of each
            group stands for the mask) or `counterfactual` (ours: the exact first-order effect of a
            channel in a slot, with the group decided anew).
        curvature: (n,) second derivative of the loss in the weights of each channel, where it is
            known. An entry's own share in the gradient, which speaks for the mask as it is, is
            then taken out: without it hardly any move looks worth its while.

    Returns:
        (R, n), original order.

    Source: shared specification, section 2.5.
    """
    if mode == "ste_mask":
        return _through_scores(weight, score, plan, inner, first, pattern)
    return _Hard.apply(weight, score, plan, inner, first, pattern, mode, curvature)


def _through_scores(
    weight: Tensor, score: Tensor, plan: Tensor, inner: Tensor, first: Tensor, pattern: Grouped
) -> Tensor:
    """Hard mask forward; backward through a group softmax of the permuted scores, and P^T.

    Source: PermLLM (NeurIPS 2025), its public code.
    """
    blocks, size, _ = plan.shape
    shape = (len(weight), blocks, size)
    hard = torch.zeros_like(plan).scatter_(1, inner[:, None, :], 1.0)
    exact = hard + (plan - plan.detach())  # in this order: no rounding enters the forward pass
    permuted = torch.einsum("rgi,gij->rgj", score[:, first].reshape(shape), exact).flatten(1)
    soft = permuted.reshape(len(weight), -1, pattern.group).softmax(dim=2).flatten(1)
    mask = nm_mask(permuted.detach(), keep=pattern.keep, group=pattern.group).to(soft.dtype)
    straight = (mask + (soft - soft.detach())).reshape(shape)
    back = torch.einsum("rgj,gij->rgi", straight, exact).flatten(1)
    return weight * back[:, inverse(first)]


class _Hard(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        score: Tensor,
        plan: Tensor,
        inner: Tensor,
        first: Tensor,
        pattern: Grouped,
        mode: Mode,
        curvature: Tensor | None,
    ) -> Tensor:
        mask = ordered_mask(score, refine(first, inner), pattern)
        ctx.save_for_backward(weight, score, mask, inner, first)
        ctx.pattern, ctx.mode, ctx.curvature = pattern, mode, curvature
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, score, mask, inner, first = ctx.saved_tensors
        blocks, size = inner.shape
        order = refine(first, inner)
        shape = (len(weight), blocks, size)
        if ctx.mode == "ste_value":
            kept = (weight * mask)[:, order].reshape(shape)
            kept_mask = mask[:, order].reshape(shape).to(weight.dtype)
            change = grads[0][:, first].reshape(shape)
            values = weight[:, first].reshape(shape)
            to_plan = torch.einsum(
                "rgi,rgj->gij", values, grads[0][:, order].reshape(shape) * kept_mask
            ) + torch.einsum("rgi,rgj->gij", change, kept)
        else:
            worth = grads[0] * weight  # what keeping an entry adds to the loss, to first order
            if ctx.curvature is not None:
                own = 0.5 * ctx.curvature * weight.square()
                worth += torch.where(mask, -own, own)
            ordered_score, ordered_worth = score[:, order], worth[:, order]
            threshold, rival = rivals(ordered_score, ctx.pattern.keep, ctx.pattern.group)
            held = ordered_worth.gather(1, rival)
            by_block = [
                exchange_gains(*(one[:, g * size : (g + 1) * size].contiguous() for one in four))
                for four in [(score[:, first], threshold, worth[:, first], held)]
                for g in range(blocks)
            ]
            to_plan = torch.stack(by_block)
            own = inner.reshape(blocks, size // ctx.pattern.group, ctx.pattern.group)
            _same_inside_a_group(to_plan, own)
        return None, None, to_plan, None, None, None, None, None


def _same_inside_a_group(gains: Tensor, members: Tensor) -> None:
    """A channel moved within its group changes nothing: the price of its own slot, in place.

    Deviates: the shared specification copies the price of the slot's present channel. Both leave
    moves within a group free; this one charges a move from outside with the channel that leaves.

    Args:
        gains: (G, b, b) price of channel i in slot j.
        members: (G, b / M, M) channels of each group.
    """
    blocks, groups, size = members.shape
    block = torch.arange(blocks)[:, None, None, None]
    channel = members[:, :, :, None]  # (G, groups, M, 1)
    slots = torch.arange(groups * size).reshape(1, groups, 1, size)
    own = torch.arange(groups * size).reshape(1, groups, size, 1)
    price = gains[block, channel, own]
    gains[block, channel, slots] = price.expand(blocks, groups, size, size)
