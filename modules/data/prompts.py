"""Prompts for decoding benchmarks, made from articles that are reported on.

Four kinds, from free text to text that can be copied: `continue` an article, `summarise` a
passage, `quote` a passage word for word, and `recall` a number from a list, which has an answer.
"""

import re
from dataclasses import dataclass
from random import Random

from effllm.modules.data.sources import Document
from effllm.modules.errors import DataError

_NOUNS = (
    *("river", "lamp", "garden", "engine", "violin", "harbour", "window", "basket", "mirror"),
    *("ladder", "bridge", "candle", "orchard", "anchor", "kettle", "saddle", "compass"),
    *("lantern", "meadow", "tunnel"),
)


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: unique in its set.
        group: kind of prompt.
        text: what the model is given.
        chat: whether the text is a user's turn of a chat.
        answer: what a right output contains; None where nothing can be checked.
    """

    id: str
    group: str
    text: str
    chat: bool
    answer: str | None = None


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


def _recall(number: int, random: Random) -> Prompt:
    names = random.sample(_NOUNS, 8)
    codes = [str(random.randrange(100, 1000)) for _ in names]
    lines = "\n".join(f"{name}: {code}" for name, code in zip(names, codes, strict=True))
    wanted = random.randrange(len(names))
    return Prompt(
        f"recall-{number}",
        "recall",
        f"{lines}\n\nWhich number belongs to {names[wanted]}?",
        chat=True,
        answer=codes[wanted],
    )


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
