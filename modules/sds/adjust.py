"""SDS, step 3: adjust the twice-pruned weights under a soft mask, then on the final mask.

Soft mask: after every gradient step the mask is chosen again from the current magnitudes, so a
removed weight can return. With the exact step size this is iterative hard thresholding, and the
objective never rises. Then, on the frozen mask, a few conjugate-gradient steps solve the masked
least squares of every row. Without any soft-mask step this is `refit`: the control that decides
whether the re-dense step earns its place.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.errors import NumericalError
from effllm.modules.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt
from effllm.modules.sds.space import Coordinates, Space
from effllm.modules.sparsity.patterns import Pattern, Scope

_MONOTONE_SLACK = 1e-5  # float32 rounding of the objective, relative to the start


@dataclass(frozen=True)
class Adjusted:
    """Result of adjusting one matrix.

    Attributes:
        weight: (R, C) float32, exactly zero outside the mask.
        mask: (R, C) bool, True = kept.
        steps: soft-mask steps done before the objective stood still.
    """

    weight: Tensor
    mask: Tensor
    steps: PositiveInt


@dataclass(frozen=True, kw_only=True)
class HardThresholding:
    """Projected gradient onto the pattern, ended by least squares on the frozen mask.

    Args:
        steps: soft-mask steps; 0 keeps the mask of the start (refit).
        refit_steps: conjugate-gradient steps on the frozen mask; 0 = the paper's literal form.
        space: `scaled` selects by |W| * ||X|| (Wanda's score), `raw` by |W| (the paper).
        ridge: share of the mean diagonal added to the least squares.
        tolerance: stop the soft-mask steps when the objective changes relatively by less.

    Source: SDS (arXiv:2408.10473) eq. 4, second-hand; solver ours.
    Deviates: the paper states magnitude masks, 200 epochs at learning rate 0.1, no refit.
    """

    steps: NonNegativeInt = 20
    refit_steps: NonNegativeInt = 20
    space: Space = "scaled"
    ridge: NonNegativeFloat = 1e-4
    tolerance: NonNegativeFloat = 1e-5

    def solve(
        self,
        original: Tensor,
        start: Tensor,
        mask: Tensor,
        gram: Tensor | Coordinates,
        pattern: Pattern,
        scope: Scope,
    ) -> Adjusted:
        """Adjust one matrix.

        Args:
            original: (R, C) W0, the target.
            start: (R, C) the pruned weight.
            mask: (R, C) bool, the mask of the start.
            gram: (C, C) Gram matrix of the inputs, or its coordinates in `space` to share them.
            pattern: pattern to keep at every step.
            scope: comparison set of unstructured patterns.

        Raises:
            NumericalError: if the objective rises, which the step size excludes for finite inputs.
        """
        at = gram if isinstance(gram, Coordinates) else Coordinates.of(gram, self.space)
        target = at.enter(original)
        pull = target @ at.gram
        current = at.enter(start) * mask
        rate = 1.0 / (2.0 * at.largest) if self.steps else 0.0
        previous, done = float("inf"), 0
        floor = float(torch.sum(pull * target))  # F + floor is the squared error, >= 0
        for _ in range(self.steps):
            image = current @ at.gram
            error = float(torch.sum(current * (image - 2 * pull))) + floor
            if not error <= previous + _MONOTONE_SLACK * abs(floor):
                raise NumericalError(f"soft-mask objective rose from {previous:g} to {error:g}")
            if done and abs(previous - error) < self.tolerance * max(error, 1e-12):
                break
            moved = current - 2 * rate * (image - pull)
            mask = pattern.mask(moved.abs(), scope=scope)
            current, previous, done = moved * mask, error, done + 1
        if self.refit_steps:
            current = masked_least_squares(
                at.gram, pull, mask, current, steps=self.refit_steps, ridge=self.ridge
            )
        weight = at.leave(current)
        if not torch.isfinite(weight).all():
            raise NumericalError("the adjusted weights are not finite")
        return Adjusted(weight, mask, done)


def masked_least_squares(
    gram: Tensor, pull: Tensor, mask: Tensor, start: Tensor, *, steps: int, ridge: float
) -> Tensor:
    """Minimise tr(V G V^T) - 2 tr(V B^T) over V with support in the mask, all rows at once.

    Conjugate gradients with per-row step sizes; each row is an independent system. A row whose
    residual has vanished stays where it is.

    Args:
        gram: (C, C) positive semi-definite.
        pull: (R, C) B = W0 G.
        mask: (R, C) bool, True = free to move.
        start: (R, C) with support in the mask.
        steps: iterations.
        ridge: share of the mean diagonal of `gram` that is added to its diagonal.

    Returns:
        (R, C), zero outside the mask; never worse than the start by the ridge objective.
    """
    level = ridge * float(gram.diagonal().mean())
    solution = start * mask
    residual = mask * (pull - solution @ gram - level * solution)
    direction = residual.clone()
    energy = residual.square().sum(dim=1, keepdim=True)  # (R, 1)
    first = energy.clone()
    for _ in range(steps):
        image = mask * torch.addmm(level * direction, direction, gram)
        curvature = torch.sum(direction * image, dim=1, keepdim=True)
        active = (energy > 1e-12 * first) & (curvature > 0)
        if not active.any():
            break
        length = torch.where(active, energy / curvature, 0.0)
        solution = solution + length * direction
        residual = residual - length * image
        renewed = residual.square().sum(dim=1, keepdim=True)
        direction = residual + torch.where(active, renewed / energy, 0.0) * direction
        energy = renewed
    return solution
