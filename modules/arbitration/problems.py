"""Problems with exact checkers, made of parts that need different skills.

A problem has several parts, each a skill's letter and four letters to work on; the answer is `=`
and all results in order, separated by `;` or `,`, which are as good. It is right only if every part
is. Which skill a part needs is drawn for every part, so that its place says nothing. What the
letters of a part can be is dealt among the splits, so that no part of a test problem stands in a
training problem.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from effllm.modules.errors import DataError

Split = Literal["models", "train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""Of policies: the models learn from problems of their own, or they would be right more often where
the policy learns than where it is tested."""

END = 1
"""Id of the token that ends an output; 0 is padding."""
CHARACTERS = "\0\1=;,so" + "abcdefghij"
"""The vocabulary: one token a character. `s` and `o` name skills, the rest is worked on."""
LETTERS = "abcdefghij"
OPERANDS = 4
_DEALT = {"models": 55, "train": 70, "validation": 80, "test": 100}  # per cent, added up


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        id: unique in its pair.
        split: whose it is.
        prompt: token ids.
        answer: for every token of the right output the ids that are right there.
        skills: one letter per part.
    """

    id: str
    split: Split
    prompt: tuple[int, ...]
    answer: tuple[tuple[int, ...], ...]
    skills: str

    def reading(self, output: list[int]) -> tuple[int, ...]:
        """What an output says: equal for those that differ in right tokens only."""
        places = enumerate(output)
        return tuple(
            -1 if place < len(self.answer) and token in self.answer[place] else token
            for place, token in places
        )

    def right(self, output: list[int]) -> bool:
        """Whether an output, without its end, is right: in every part, no longer, no shorter."""
        return len(output) == len(self.answer) and all(
            token in allowed for token, allowed in zip(output, self.answer, strict=True)
        )


def solve(skill: str, letters: str) -> str:
    """The right result of one part.

    Args:
        skill: `s` sorts the letters, `o` turns their order around and moves each on by one.
        letters: of `LETTERS`.

    Raises:
        ValueError: for another skill.
    """
    if skill == "s":
        return "".join(sorted(letters))
    if skill == "o":
        return "".join(LETTERS[(LETTERS.index(one) + 1) % len(LETTERS)] for one in letters[::-1])
    raise ValueError(f"unknown skill {skill!r}; there are s and o")


def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text."""
    return tuple(CHARACTERS.index(one) for one in text)


def decode(tokens: list[int]) -> str:
    """The text of token ids."""
    return "".join(CHARACTERS[one] for one in tokens)


def make_problems(
    split: Split,
    count: int,
    *,
    parts: int,
    share: float,
    seed: int,
    strings: Mapping[str, int] | None = None,
) -> list[Problem]:
    """Different problems of one split.

    Args:
        split: whose letters they may use.
        count: problems.
        parts: per problem.
        share: of the parts that sort.
        seed: of the draws.
        strings: skill -> how many different letters it is shown with; None: all of the split.

    Raises:
        DataError: if there are not so many different problems.
    """
    random = Random(f"{seed}/{split}/{share}")
    few = {
        skill: [_operands(split, random) for _ in range(number)]
        for skill, number in (strings or {}).items()
    }
    found: dict[str, Problem] = {}
    for _ in range(20 * count):
        skills = ["s" if random.random() < share else "o" for _ in range(parts)]
        operands = [
            random.choice(few[one]) if one in few else _operands(split, random) for one in skills
        ]
        text = "".join(a + b for a, b in zip(skills, operands, strict=True))
        results = [solve(a, b) for a, b in zip(skills, operands, strict=True)]
        answer = tuple(
            _SEPARATORS if one == ";" else encode(one) for one in "=" + ";".join(results)
        )
        name = f"{split}-{len(found)}"
        found.setdefault(text, Problem(name, split, encode(text), answer, "".join(skills)))
        if len(found) == count:
            return list(found.values())
    raise DataError(
        f"problems: {len(found)} different ones of {parts} parts were found for {split}, {count} "
        "are needed; ask for fewer or for more parts"
    )


_SEPARATORS = encode(";,")


def _operands(split: Split, random: Random) -> str:
    while True:
        letters = "".join(random.choice(LETTERS) for _ in range(OPERANDS))
        place = int.from_bytes(hashlib.sha256(letters.encode()).digest()[:4], "big") % 100
        if next(name for name, end in _DEALT.items() if place < end) == split:
            return letters
