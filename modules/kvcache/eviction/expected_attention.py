"""Which tokens future queries will attend to, if they are like those of the prompt.

Queries before rotation are taken as draws of one normal law per head. The next queries are such
draws, rotated to positions after the prompt; under that law the expected exponential of a score
has a closed form, log E exp(q . k s) = s mu . k + s^2 k' Sigma k / 2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.kvcache.eviction.base import Budget, Eviction, Prefill, highest
from effllm.modules.ranges import NonNegativeInt, PositiveInt

_EVERY = 2**31 - 1  # more queries than any prompt has
_SAME = 0.01  # cosines of a pair differ by rounding, in bfloat16 by up to 2^-8


@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(Eviction):
    """The tokens with the largest expected attention times the norm of their value.

    Args:
        budget: tokens kept.
        sinks: first tokens, which always stay; their queries are left out, and attention is shared
            out among the others.
        future: positions after the prompt over which the rotation is averaged.

    Source: kvpress's `ExpectedAttentionPress`, `expected_attention_press.py`.
    """

    budget: Budget
    sinks: NonNegativeInt = 4
    future: PositiveInt = 512

    def __post_init__(self) -> None:
        if self.future < 1 or self.sinks < 0:
            raise ValueError("expected attention looks 1 or more positions ahead, and sinks >= 0")

    @property
    def window(self) -> int:
        """Every query of the prompt."""
        return _EVERY

    def keep(self, seen: Prefill) -> Tensor:
        """Highest expected attention times the norm of the value, and the first tokens."""
        age = seen.ages()  # (B, S)
        score = self.expected(seen) * seen.values.float().norm(dim=-1)
        count = self.budget.count(seen.tokens)
        sink = (age >= 0) & (age < min(self.sinks, count))
        return highest(score.masked_fill(sink[:, None], math.inf), count, seen)

    def expected(self, seen: Prefill) -> Tensor:
        """(B, Hkv, S) expected attention among all but the sinks, mean over the heads of a group.

        Zero for sinks and padding.
        """
        batch, own, _, channels = seen.keys.shape
        mean, spread = self.query_law(seen)
        keys = seen.keys.float()
        group = mean.shape[1] // own
        mean = mean.reshape(batch, own, group, channels) * seen.scaling
        spread = spread.reshape(batch, own, group, channels, channels) * seen.scaling**2
        score = mean @ keys.mT  # (B, Hkv, G, S)
        bent = keys.unsqueeze(2) @ spread  # (B, Hkv, G, S, D)
        score += (bent * keys.unsqueeze(2)).sum(dim=-1) / 2
        score = score.masked_fill((seen.ages() < self.sinks)[:, None, None], -math.inf)
        return score.softmax(dim=-1).nan_to_num(0.0).mean(dim=2)  # NaN: sinks alone

    def query_law(self, seen: Prefill) -> tuple[Tensor, Tensor]:
        """(B, H, D) mean and (B, H, D, D) covariance of queries after the prompt."""
        queries = seen.queries.float()
        ages = seen.ages()[:, -queries.shape[2] :]
        used = (ages >= self.sinks).float()
        alone = used.sum(dim=1, keepdim=True) == 0  # only sinks: better than nothing
        share = torch.where(alone, (ages >= 0).float(), used)
        share = (share / share.sum(dim=1, keepdim=True).clamp_min(1))[:, None, :, None]
        turn = None
        if seen.rotation is not None:
            cosine, sine = seen.rotation.float().unbind(dim=1)  # (B, W, R) each
            scale = cosine.square() + sine.square()  # some models scale what they rotate
            queries = rotated(queries, (cosine / scale)[:, None], (-sine / scale)[:, None])
            turn = self._average_rotation(cosine, sine, queries.shape[-1])
        mean = (share * queries).sum(dim=2)
        centred = queries - mean.unsqueeze(2)
        spread = (share * centred).mT @ centred
        if turn is not None:
            mean = (turn @ mean.unsqueeze(-1)).squeeze(-1)
            spread = turn @ spread @ turn.mT
        return mean, spread

    def _average_rotation(self, cosine: Tensor, sine: Tensor, channels: int) -> Tensor:
        """(B, 1, D, D) mean rotation of the positions after the prompt.

        The angle of one step is that between the last two tokens.
        """
        size = torch.hypot(cosine[:, -1:], sine[:, -1:])
        angle = torch.atan2(sine, cosine)
        step = angle[:, -1:] - angle[:, -2:-1] if angle.shape[1] > 1 else 0 * angle[:, -1:]
        ahead = torch.arange(1, self.future + 1, device=angle.device).reshape(1, -1, 1)
        angles = angle[:, -1:] + ahead * step
        cosines, sines = ((size * f(angles)).mean(dim=1) for f in (torch.cos, torch.sin))
        unit = torch.eye(channels, device=angle.device)
        # Column j of the matrix is where the unit vector j goes.
        return rotated(unit, cosines[:, None, None], sines[:, None, None]).mT


def rotated(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs (j, j + R / 2) of the first R channels, as Llama does; the rest stays.

    Args:
        states: (..., D).
        cosine: (..., R), R <= D; the sizes in front must broadcast.
        sine: as `cosine`.

    Raises:
        ValueError: if the model pairs channels in another way.
    """
    width = cosine.shape[-1]
    half = width // 2
    if not torch.allclose(cosine[..., :half], cosine[..., half:], rtol=0.0, atol=_SAME):
        raise ValueError(
            "expected attention knows rotations of channel pairs (j, j + R / 2) only; this model "
            "pairs others"
        )
    turned, rest = states[..., :width], states[..., width:]
    swapped = torch.cat([-turned[..., half:], turned[..., :half]], dim=-1)
    turned = turned * cosine + swapped * sine
    return torch.cat([turned, rest.expand(*turned.shape[:-1], -1)], dim=-1)
