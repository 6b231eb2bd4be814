"""What a session asks of a proposer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from effllm.modules.decoding.records import Block


class Proposer(Protocol):
    """Drafts the tokens of one round."""

    @property
    def passes(self) -> int:
        """Model passes so far; stays 0 without a model."""

    def start(self, prompt: Sequence[int], ends: frozenset[int]) -> None:
        """Begin a new text; nothing is drafted beyond a token of `ends`."""

    def propose(self, ids: Sequence[int], budget: int, generator: torch.Generator) -> Block:
        """Up to `budget` tokens to follow the committed `ids`; an empty block for none."""


class StateReader(ABC):
    """A proposer that drafts trees from what the target's head read."""

    @abstractmethod
    def observe(self, states: Tensor) -> None:
        """Last hidden states of the tokens that the target has just committed.

        Called after the prompt's pass and after every other one, so that together with the token
        that follows each all committed tokens are covered.

        Args:
            states: (n, C) of the target's dtype, in the order of the text.
        """


class Nothing:
    """Drafts nothing: plain decoding, one token per pass."""

    passes = 0

    def start(self, prompt: Sequence[int], ends: frozenset[int]) -> None:
        """Nothing to prepare."""

    def propose(self, ids: Sequence[int], budget: int, generator: torch.Generator) -> Block:
        """An empty block."""
        return Block([])


def cut_after_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Tokens up to and with the first of `ends`."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens
