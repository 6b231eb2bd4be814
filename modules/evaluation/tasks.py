"""Three checkable tasks, two of them made from articles that nothing was calibrated on.

`lastword` asks for the last word of a passage that has used the word before, as LAMBADA does:
it needs the context, not only the sentence. `continuation` asks which of four word sequences
follows a passage; the wrong ones come from other articles. Chance is about 0 and exactly 1/4.
`recall` asks for a number from a list, to be written: it needs no article, and is for decoders.
"""

import re
from random import Random

from effllm.modules.data.prompts import number_list
from effllm.modules.data.texts import Document
from effllm.modules.errors import DataError

Item = dict[str, str | int | list[str]]

_SENTENCE_END = re.compile(r"(?<=[a-z0-9)][.!?])\s+(?=[A-Z])")


def lastword_items(
    documents: list[Document], *, count: int, min_words: int, max_words: int, seed: int
) -> list[Item]:
    """Passages of whole sentences whose last word occurs in them before.

    Args:
        documents: articles.
        count: items wanted.
        min_words: shortest passage.
        max_words: longest passage.
        seed: of the choice among all candidates.

    Returns:
        `{"context", "target", "article"}` per item; the target starts with a space.

    Raises:
        DataError: if the articles hold fewer candidates than wanted.
    """
    candidates: list[Item] = []
    for document in documents:
        for sentences in _paragraphs(document.text):
            for end in range(1, len(sentences) + 1):
                passage = _longest_passage(sentences[:end], max_words)
                word = passage[-1].rstrip(".!?") if len(passage) >= min_words else ""
                before = {re.sub(r"\W", "", w).lower() for w in passage[:-1]}
                if re.fullmatch(r"[A-Za-z]{4,}", word) and word.lower() in before:
                    context = " ".join(passage[:-1])
                    candidates.append(
                        {"context": context, "target": f" {word}", "article": document.id}
                    )
    return _draw(candidates, count, seed, "lastword")


def continuation_items(
    documents: list[Document], *, count: int, context_words: int, choice_words: int, seed: int
) -> list[Item]:
    """Passages with their true continuation and three from other articles, in random order.

    Args:
        documents: articles; at least four.
        count: items wanted.
        context_words: words of the passage.
        choice_words: words of each choice; all four have the same number.
        seed: of choice and order.

    Returns:
        `{"context", "choices", "label", "article"}` per item; choices start with a space.

    Raises:
        DataError: if the articles hold fewer candidates than wanted.
    """
    spans: list[tuple[str, str, str]] = []  # article, context, continuation
    for document in documents:
        for sentences in _paragraphs(document.text):
            words = " ".join(sentences).split()
            for start in range(0, len(words) - context_words - choice_words, 3 * context_words):
                middle, end = start + context_words, start + context_words + choice_words
                spans.append(
                    (document.id, " ".join(words[start:middle]), " ".join(words[middle:end]))
                )
    random = Random(seed)
    candidates: list[Item] = []
    for article, context, truth in spans:
        others = [span for span in random.sample(spans, min(24, len(spans))) if span[0] != article]
        if len(others) < 3:
            continue
        choices = [truth, *(span[2] for span in others[:3])]
        order = random.sample(range(4), 4)
        candidates.append(
            {
                "context": context,
                "choices": [f" {choices[index]}" for index in order],
                "label": order.index(0),
                "article": article,
            }
        )
    return _draw(candidates, count, seed, "continuation")


def recall_items(*, count: int, seed: int) -> list[Item]:
    """Lists of named numbers, and the question for one of them.

    Args:
        count: items wanted.
        seed: of the lists.

    Returns:
        `{"context", "target"}` per item; the target is the number.
    """
    random = Random(seed)
    items: list[Item] = []
    for _ in range(count):
        lines, name, number = number_list(random)
        question = f"Question: Which number belongs to {name}?\nAnswer:"
        items.append({"context": f"{lines}\n\n{question}", "target": number})
    return items


def _paragraphs(text: str) -> list[list[str]]:
    """Sentences of each paragraph."""
    return [_SENTENCE_END.split(line) for line in text.split("\n") if line.strip()]


def _longest_passage(sentences: list[str], max_words: int) -> list[str]:
    """Words of as many of the last sentences as fit into `max_words`."""
    passage: list[str] = []
    for sentence in reversed(sentences):
        words = sentence.split()
        if len(passage) + len(words) > max_words:
            break
        passage = words + passage
    return passage


def _draw(candidates: list[Item], count: int, seed: int, name: str) -> list[Item]:
    if len(candidates) < count:
        raise DataError(
            f"task {name}: the articles hold {len(candidates)} items, {count} are wanted; "
            "give more text or ask for fewer"
        )
    return Random(seed).sample(candidates, count)
