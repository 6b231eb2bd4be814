"""Prompt lookup: what followed the last few tokens when they occurred before?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from effllm.modules.decoding.proposers.base import cut_after_end
from effllm.modules.decoding.records import Block
from effllm.modules.ranges import NonNegativeInt, PositiveInt


class NgramIndex:
    """Where each n-gram of a growing text ends; appending and taking back cost O(max_ngram).

    Args:
        max_ngram: longest n-gram.
    """

    def __init__(self, max_ngram: int) -> None:
        self.max_ngram = max_ngram
        self.ids: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        for token in tokens:
            self.ids.append(token)
            for gram in self._grams():
                self._ends.setdefault(gram, []).append(len(self.ids))

    def truncate(self, length: int) -> None:
        """Take back tokens until `length` are left."""
        while len(self.ids) > length:
            for gram in self._grams():
                ends = self._ends[gram]
                ends.pop()
                if not ends:
                    del self._ends[gram]
            self.ids.pop()

    def sync(self, ids: Sequence[int]) -> None:
        """Hold exactly `ids`; only what differs from the held tokens is indexed anew."""
        common = min(len(self.ids), len(ids))
        if self.ids[:common] != list(ids[:common]):
            pairs = enumerate(zip(self.ids, ids, strict=False))
            common = next(place for place, (mine, wanted) in pairs if mine != wanted)
        self.truncate(common)
        self.extend(ids[len(self.ids) :])

    def continuation(
        self, count: int, prefer: Literal["earliest", "latest"], shortest: int = 1
    ) -> list[int]:
        """Up to `count` tokens that followed the longest suffix seen before; empty if none.

        Args:
            count: most tokens wanted.
            prefer: which earlier occurrence.
            shortest: suffixes of fewer tokens do not count.
        """
        for gram in self._grams():
            if len(gram) < shortest:
                break
            ends = self._ends[gram]
            if len(ends) > 1:
                end = ends[0] if prefer == "earliest" else ends[-2]
                return self.ids[end : end + count]
        return []

    def _grams(self) -> list[tuple[int, ...]]:
        """N-grams that end at the last token, longest first."""
        longest = min(self.max_ngram, len(self.ids))
        return [tuple(self.ids[-n:]) for n in range(longest, 0, -1)]


@dataclass
class PromptLookup:
    """Drafts what followed the longest matching n-gram in prompt and output.

    Args:
        max_ngram: longest n-gram that is looked up.
        min_ngram: shortest n-gram that is looked up when longer ones are new.
        tokens: most tokens drafted.
        prefer: which of several earlier occurrences is taken.

    Source: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding); FLy's MLA takes
        the earliest match and n = 4; the latest is often closer in topic (ours).
    """

    max_ngram: PositiveInt = 4
    min_ngram: PositiveInt = 1
    tokens: PositiveInt = 8
    prefer: Literal["earliest", "latest"] = "latest"
    passes: NonNegativeInt = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.min_ngram <= self.max_ngram or self.tokens < 1:
            raise ValueError(f"need 1 <= min_ngram <= max_ngram and tokens >= 1, got {self}")
        if self.prefer not in ("earliest", "latest"):
            raise ValueError(f"prefer: earliest or latest, got {self.prefer!r}")

    def start(self, prompt: Sequence[int], ends: frozenset[int]) -> None:
        """Index the prompt."""
        self._ends = ends
        self._index = NgramIndex(self.max_ngram)
        self._index.extend(prompt)

    def propose(self, ids: Sequence[int], budget: int, generator: torch.Generator) -> Block:
        """A point draft of up to `tokens` tokens."""
        self._index.sync(ids)
        found = self._index.continuation(min(budget, self.tokens), self.prefer, self.min_ngram)
        return Block(cut_after_end(found, self._ends))
