"""Prompts for decoding benchmarks: what they are, and those made from articles.

Four kinds are made from the articles that are reported on, from free text to text that can
be copied: `continue` an article, `summarise` a passage, `quote` a passage word for word, and
`recall` a number from a list, which has an answer. Other sets: `prompt_sources.py`.
"""

import re
from dataclasses import dataclass
from random import Random
from typing import Literal

from effllm.modules.data.texts import Document
from effllm.modules.errors import DataError

_NUMBER = re.compile(r"(?<!\d)-?\d+(?:,\d{3})*(?:\.\d+)?")  # the hyphen of 7-3 is no sign
_NOUNS = (
    *("river", "lamp", "garden", "engine", "violin", "harbour", "window", "basket", "mirror"),
    *("ladder", "bridge", "candle", "orchard", "anchor", "kettle", "saddle", "compass"),
    *("lantern", "meadow", "tunnel"),
)


Check = Literal["contains", "words", "last_number"]


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: unique in its set.
        group: kind of prompt.
        text: what the model is given.
        chat: whether the text is a user's turn of a chat.
        answer: the right answer; None where nothing can be checked.
        check: how an output is held against the answer: it `contains` it, its words contain the
            answer's `words` in a row (whatever stands between them), or its `last_number` is it.
    """

    id: str
    group: str
    text: str
    chat: bool
    answer: str | None = None
    check: Check = "contains"

    def judge(self, output: str) -> int | None:
        """1 if the output is right, 0 if it is wrong, None if that cannot be told."""
        if self.answer is None:
            return None
        if self.check == "last_number":
            found = _NUMBER.findall(output)
            return int(bool(found) and _value(found[-1]) == _value(self.answer))
        if self.check == "words":
            return int(f" {_words(self.answer)} " in f" {_words(output)} ")
        return int(self.answer in output)


def article_prompts(
    documents: list[Document], *, per_group: int, words: int, seed: int
) -> list[Prompt]:
    """Prompts of every kind, from different articles as far as they go.

    Args:
        documents: articles.
        per_group: prompts of each kind.
        words: longest passage, to be summarised; half of it is quoted, a third continued.
        seed: of the choice.

    Raises:
        DataError: if there are too few long paragraphs.
    """
    random = Random(seed)
    passages = _passages(documents, words // 2, random)
    if len(passages) < 3 * per_group:
        raise DataError(
            f"prompts: the articles hold {len(passages)} long paragraphs, {3 * per_group} are "
            "needed; give more text or ask for fewer"
        )
    prompts = []
    for number in range(per_group):
        opening, summary, quote = passages[3 * number : 3 * number + 3]
        prompts += [
            Prompt(f"continue-{number}", "continue", " ".join(opening[: words // 3]), chat=False),
            Prompt(
                f"summarise-{number}",
                "summarise",
                f"Summarise this text in three sentences.\n\n{' '.join(summary[:words])}",
                chat=True,
            ),
            Prompt(
                f"quote-{number}",
                "quote",
                f"Repeat this text word for word.\n\n{' '.join(quote[: words // 2])}",
                chat=True,
            ),
            _recall(number, random),
        ]
    return prompts


def nouns(count: int, random: Random) -> list[str]:
    """Different everyday nouns in random order."""
    return random.sample(_NOUNS, count)


def number_list(random: Random) -> tuple[str, str, str]:
    """Eight lines `name: number`, one of the names, and its number."""
    names = nouns(8, random)
    codes = [str(random.randrange(100, 1000)) for _ in names]
    lines = "\n".join(f"{name}: {code}" for name, code in zip(names, codes, strict=True))
    wanted = random.randrange(len(names))
    return lines, names[wanted], codes[wanted]


def _recall(number: int, random: Random) -> Prompt:
    lines, name, code = number_list(random)
    question = f"{lines}\n\nWhich number belongs to {name}?"
    return Prompt(f"recall-{number}", "recall", question, chat=True, answer=code)


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _passages(documents: list[Document], shortest: int, random: Random) -> list[list[str]]:
    """Words of long paragraphs, articles taking turns."""
    by_article = []
    for document in documents:
        long = [
            words
            for line in document.text.split("\n")
            if len(words := re.findall(r"\S+", line)) >= shortest
        ]
        random.shuffle(long)
        by_article.append(long)
    random.shuffle(by_article)
    deepest = max((len(one) for one in by_article), default=0)
    return [one[turn] for turn in range(deepest) for one in by_article if turn < len(one)]
