"""The arbiter: from what is seen at a mismatch to a score; high ones keep the draft's token.

An untrained policy takes the draft's token once in ten, so that its first rollouts are near the
target's. While training, a floor keeps both actions possible.
"""

import math

import torch
from torch import Tensor, nn

from effllm.modules.arbitration.names import Network
from effllm.modules.arbitration.observations import FEATURES

_FIRST_CHANCE = 0.1
_CLIP = 8.0  # standard deviations


class Policy(nn.Module):
    """Scores z of observations; the draft's token is taken with chance sigmoid(z).

    Args:
        network: `linear`, or `mlp` of two hidden layers.
        used: names of the features that are seen; the others are nothing to it.
        width: of the hidden layers.
        seed: of the first weights.
    """

    mean: Tensor
    scale: Tensor
    used: Tensor

    def __init__(
        self, network: Network, used: frozenset[str], *, width: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        count = len(FEATURES)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("scale", torch.ones(count))
        self.register_buffer("used", torch.tensor([float(name in used) for name in FEATURES]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            last = nn.Linear(count if network == "linear" else width, 1)
            self.layers = nn.Sequential(last)
            if network == "mlp":
                self.layers = nn.Sequential(
                    *(nn.Linear(count, width), nn.LayerNorm(width), nn.SiLU()),
                    *(nn.Linear(width, width), nn.SiLU(), last),
                )
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, math.log(_FIRST_CHANCE / (1 - _FIRST_CHANCE)))

    def fit_scale(self, observations: Tensor) -> None:
        """Standardise by (n, F) observations from now on; what never varies becomes 0."""
        spread = observations.std(dim=0, correction=0)
        self.mean.copy_(observations.mean(dim=0))
        self.scale.copy_(torch.where(spread > 1e-6, 1 / spread.clamp_min(1e-6), 0.0))

    def standardised(self, observations: Tensor) -> Tensor:
        """(n, F) what the network reads."""
        scaled = (observations - self.mean) * self.scale
        return scaled.clamp(-_CLIP, _CLIP) * self.used

    def forward(self, observations: Tensor) -> Tensor:
        """(n,) scores of (n, F) observations."""
        scores: Tensor = self.layers(self.standardised(observations))[:, 0]
        return scores


def chance(scores: Tensor, floor: float) -> Tensor:
    """Chance of taking the draft's token, at least `floor` for either action."""
    return floor + (1 - 2 * floor) * scores.sigmoid()
