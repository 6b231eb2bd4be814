"""A pair of tables whose best possible arbitration is known.

Every problem has a few positions, after a token that nobody doubts. At each the two models agree,
or differ in one of four ways: both tokens are right, the target's, the draft's, or neither. How
sure each model is carries half of a noisy signal of which. Positions are independent and a problem
is right if all are, so the best rule takes the draft's token where P(01 | signal) > P(10 | signal),
and its accuracy has a closed form.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.arbitration.problems import SPLITS, Problem, Split
from effllm.modules.ranges import NonNegativeFloat, PositiveInt, Ratio

VOCABULARY = 12
_TARGET_TOKEN, _DRAFT_TOKEN, _SAME_TOKEN, _END = 4, 5, 6, 1
_DIGIT = 2  # the prompt is the number of the problem in binary, of tokens 2 and 3
_SURE = 8.0  # logit of what nobody doubts


@dataclass(frozen=True, kw_only=True)
class World:
    """How often the two models differ in which way, and how well it can be told.

    Args:
        positions: of a problem.
        both: chance that both tokens are right (cell 11).
        target_right: that only the target's is (10).
        draft_right: that only the draft's is (01).
        neither: that none is (00); the rest of 1 is agreement, on a right token.
        signal: mean of each half of the signal, in its standard deviations.
    """

    positions: PositiveInt = 3
    both: Ratio = 0.25
    target_right: Ratio = 0.27
    draft_right: Ratio = 0.18
    neither: Ratio = 0.05
    signal: NonNegativeFloat = 0.6

    def __post_init__(self) -> None:
        if not sum(self.chances) <= 1:
            raise ValueError(f"need chances that add up to at most 1, got {sum(self.chances)}")

    @property
    def chances(self) -> tuple[float, float, float, float]:
        """Of the cells 11, 10, 01 and 00."""
        return self.both, self.target_right, self.draft_right, self.neither

    @property
    def target_accuracy(self) -> float:
        """Expected, of the target alone."""
        return float((1 - self.draft_right - self.neither) ** self.positions)

    @property
    def best_accuracy(self) -> float:
        """Expected, of the best rule there is.

        The halves add up to a sum with means +-2 signal and variance 2; the draft's token is taken
        where ln(P(01) / P(10)) + 2 signal * sum > 0.
        """
        if self.signal == 0 or not (self.draft_right and self.target_right):
            won = max(self.draft_right, self.target_right)
        else:
            edge = math.log(self.target_right / self.draft_right) / (2 * self.signal)
            taken = 1 - _normal((edge - 2 * self.signal) / math.sqrt(2))
            kept = _normal((edge + 2 * self.signal) / math.sqrt(2))
            won = self.draft_right * taken + self.target_right * kept
        certain = 1 - sum(self.chances) + self.both
        return float((certain + won) ** self.positions)


def _digits(problems: int) -> int:
    return max(1, (problems - 1).bit_length())


def _normal(value: float) -> float:
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


class TableStepper:
    """A model that says at each position what its table says, whatever it has read.

    Args:
        table: (N, T, V) logits of every problem.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.problems = torch.zeros(0, dtype=torch.long)
        self.position = 0

    def begin(self, prompts: Tensor) -> Tensor:
        """(R, V) logits; the prompts are the problems' numbers, and what was emitted after them."""
        digits = _digits(len(self.table))
        powers = 2 ** torch.arange(digits)
        self.problems = ((prompts[:, :digits] - _DIGIT) * powers).sum(dim=1)
        self.position = prompts.shape[1] - digits
        return self.table[self.problems, self.position]

    def step(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """(R', V) logits of the next position."""
        self.problems, self.position = self.problems[rows], self.position + 1
        return self.table[self.problems, self.position]


def make_fake(
    world: World, counts: dict[Split, int], generator: torch.Generator
) -> tuple[list[Problem], Tensor, Tensor]:
    """Problems of all splits, and the tables of target and draft.

    Args:
        world: the chances.
        counts: problems of each split.
        generator: of all draws.

    Returns:
        Problems in the order of the tables; (N, positions + 2, V) logits of each model.
    """
    total, length = sum(counts.values()), world.positions
    cells = torch.tensor([*world.chances, 1 - sum(world.chances)]).clamp_min(0)
    kinds = torch.multinomial(cells, total * length, replacement=True, generator=generator)
    kinds = kinds.view(total, length)  # 0: 11, 1: 10, 2: 01, 3: 00, 4: the same token
    lean = (kinds == 2).float() - (kinds == 1).float()
    halves = torch.randn(2, total, length, generator=generator) + world.signal * lean
    tables = []
    for token, sign, half in zip((_TARGET_TOKEN, _DRAFT_TOKEN), (-1, 1), halves, strict=True):
        table = torch.zeros(total, length + 2, VOCABULARY)
        middle = table[:, 1:-1]
        middle[..., token] = (1 + sign * half / 2).exp()  # positive, so it is the choice
        middle[kinds == 4] = 0
        middle[..., _SAME_TOKEN][kinds == 4] = _SURE
        table[:, 0, _SAME_TOKEN] = _SURE
        table[:, -1, _END] = _SURE
        tables.append(table)
    right = {0: (_TARGET_TOKEN, _DRAFT_TOKEN), 1: (_TARGET_TOKEN,), 2: (_DRAFT_TOKEN,), 3: ()}
    right[4] = (_SAME_TOKEN,)
    problems, number = [], 0
    for split in SPLITS:
        for index in range(counts[split]):
            prompt = tuple(_DIGIT + (number >> place & 1) for place in range(_digits(total)))
            answer = tuple(right[kind] for kind in (4, *kinds[number].tolist()))
            problems.append(Problem(f"{split}-{index}", split, prompt, answer, "f" * length))
            number += 1
    return problems, tables[0], tables[1]
