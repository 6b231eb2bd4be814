"""Stored states of a run of tokens: tensors with a row per token, and tensors shared by a head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Segment:
    """Keys or values of `tokens` tokens in some format.

    Attributes:
        tokens: stored tokens (S).
        channels: of a state (D).
        rows: name -> (B, Hkv, S, ...), or (B, Hkv, S / group, ...) if a row serves several tokens.
        head: name -> (B, Hkv, ...), the same for all tokens of a head.
    """

    tokens: int
    channels: int
    rows: dict[str, Tensor]
    head: dict[str, Tensor] = field(default_factory=dict)

    def over_batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a change of the batch dimension to all tensors."""
        self.rows = {name: change(one) for name, one in self.rows.items()}
        self.head = {name: change(one) for name, one in self.head.items()}

    def first(self, tokens: int) -> Segment:
        """A copy of the first tokens, for formats with a row per token."""
        rows = {name: one[:, :, :tokens].clone() for name, one in self.rows.items()}
        return Segment(tokens, self.channels, rows, self.head)

    def joined(self, other: Segment) -> Segment:
        """This segment, and after it one that shares its head tensors."""
        rows = {name: torch.cat([one, other.rows[name]], dim=2) for name, one in self.rows.items()}
        return Segment(self.tokens + other.tokens, self.channels, rows, self.head)

    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return [*self.rows.values(), *self.head.values()]


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages of some tensors: what they hold alive."""
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in tensors}
    return sum(one.nbytes() for one in storages.values())
