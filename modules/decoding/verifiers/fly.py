"""FLy: keep a drafted token that the target words differently but goes on to agree with.

At a mismatch j, the gate asks whether the target is open to alternatives there: the entropy of
its law, at least theta. The window asks whether the target, once the drafted token is in its
context, agrees with the next W drafted tokens. Both must hold, and the window must lie inside the
block; otherwise the round ends at j with the target's own token. Nothing is trained and no pass is
added: all of it is read from the logits that exact verification needs anyway.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from effllm.modules.decoding.records import Block, Decision
from effllm.modules.decoding.sampling import Sampling
from effllm.modules.decoding.verifiers.chain import ChainTest, TokenReader
from effllm.modules.inference.choice import best_tokens
from effllm.modules.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt

Measure = Literal["top", "normalized"]
Window = Literal["full", "official"]


@dataclass(frozen=True, kw_only=True)
class Fly(TokenReader):
    """Entropy gate and look-ahead window.

    Args:
        threshold: theta; mismatches with a smaller measure end the round.
        window: W, drafted tokens after a mismatch that must match; must be below K to act.
        measure: `top` = entropy of the `top_tokens` most likely tokens in nats, without
            renormalising; `normalized` = full entropy over ln V, in [0, 1].
        top_tokens: for `top`.
        window_check: `full` = W following tokens; `official` = W - 1, as the released code does.
        protected: token ids (ends, control tokens) at which only a match is accepted.
        sampling: the target's law; the gate sees the same law.

    Source: FLy (arXiv:2511.22972), eq. 5-11, second-hand; official code fly/models/FLy.py for the
        top-3 measure and its default 0.3; vLLM's port for sampling.
    Deviates: the paper's normalised entropy at 0.3 opens almost never, so the code's measure is
        the default. The official code samples the target twice when it samples, which is not
        exact even with the gate shut; here the gate shut means exact sampling.
    """

    threshold: NonNegativeFloat = 0.3
    window: NonNegativeInt = 6
    measure: Measure = "top"
    top_tokens: PositiveInt = 3
    window_check: Window = "full"
    protected: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    lossless: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.window < 0 or self.top_tokens < 1 or math.isnan(self.threshold):
            raise ValueError(f"need window >= 0, top_tokens >= 1 and a threshold, got {self}")
        if self.measure not in get_args(Measure) or self.window_check not in get_args(Window):
            raise ValueError(
                f"need measure of {get_args(Measure)} and window_check of {get_args(Window)}, "
                f"got {self.measure!r}, {self.window_check!r}"
            )

    def knowing(self, special: frozenset[int], ends: frozenset[int]) -> Self:
        """The same with special tokens protected."""
        return replace(self, protected=special)

    def verify(self, block: Block, logits: Tensor, generator: torch.Generator) -> Decision:
        """Judge K tokens by (K + 1, V) float32 logits, the root's row first."""
        test = ChainTest(block, logits, self.sampling, generator)
        # A match at a protected token (an end) closes every window that would reach beyond it.
        ends = [i for i, token in enumerate(block.tokens) if token in self.protected]
        length = min([len(block), *(end + 1 for end in ends)])
        everywhere = [True] * len(block)
        clear = loosen(test.native, everywhere, self.window, self.window_check, length)
        gates: list[float | None] = [None] * len(block)
        accepted = [False] * len(block)
        for position, token in enumerate(block.tokens):
            accepted[position] = test.native[position]
            if not accepted[position]:
                law = test.law_at(position)
                value = float(gate_measure(law[None], self.measure, self.top_tokens))
                gates[position] = value
                free = self.protected.isdisjoint({token, best_tokens(law[None])[0]})
                is_open = value >= self.threshold and float(law[token]) > 0 and free
                accepted[position] = clear[position] and is_open
            if not accepted[position]:
                break  # the round ends here; what follows need not be judged
        return test.decide(accepted, gates=gates)


def loosen(
    native: Sequence[bool],
    open_at: Sequence[bool],
    window: int,
    window_check: Window,
    length: int | None = None,
) -> list[bool]:
    """Which drafted tokens are accepted, each judged on the native bits.

    Args:
        native: K bits, whether the target agrees.
        open_at: K bits, whether the gate is open; read at mismatches only.
        window: W.
        window_check: `full` or `official`.
        length: windows must end within so many tokens; K if None.

    Returns:
        K bits; the block is kept up to the first False.

    Source: FLy eq. 8-11; the boundary test j + W <= K (from 1) in both variants.
    """
    block = len(native) if length is None else length
    checked = window if window_check == "full" else max(window - 1, 0)
    return [
        agrees
        or (
            open_at[position]
            and position + window < block
            and all(native[position + 1 : position + 1 + checked])
        )
        for position, agrees in enumerate(native)
    ]


def gate_measure(law: Tensor, measure: Measure, top_tokens: int) -> Tensor:
    """How open the target is to alternatives.

    Args:
        law: (n, V) probabilities.
        measure: `top` or `normalized`.
        top_tokens: for `top`.

    Returns:
        (n,) float32: nats for `top`, in [0, 1] for `normalized`.
    """
    if measure == "top":
        law = law.topk(min(top_tokens, law.shape[-1]), dim=-1).values
    entropy = -torch.special.xlogy(law, law).sum(dim=-1)
    return entropy if measure == "top" else entropy / math.log(law.shape[-1])
