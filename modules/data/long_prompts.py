"""Long prompts with answers that can be checked: find, follow, count, and quote.

In the manner of RULER, in our own words and without downloads: sentences of articles are the
haystack. A prompt has a context and a question after it, so that a cache can be compressed before
the question is known, or with it. Answers continue the question's last words directly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from effllm.modules.data.prompts import nouns
from effllm.modules.data.texts import Document
from effllm.modules.errors import DataError

TASKS = ("needle", "multikey", "multivalue", "chain", "common_word", "article")

_ADJECTIVES = ("quiet", "golden", "narrow", "ancient", "crimson", "hollow", "gentle", "frozen")
_SPARE = 4  # tokens left free: joining pieces may take other tokens than they do alone


@dataclass(frozen=True)
class LongPrompt:
    """One prompt.

    Attributes:
        id: unique in its set.
        task: one of `TASKS`.
        length: most tokens of context, question and answers together.
        context: the long part.
        question: what follows it, up to the answer.
        answers: pieces that continue it in this order; each counts alone.
    """

    id: str
    task: str
    length: int
    context: str
    question: str
    answers: list[str]


def long_prompts(
    documents: list[Document],
    count_tokens: Callable[[str], int],
    *,
    tasks: list[str],
    lengths: list[int],
    per_task: int,
    seed: int,
) -> list[LongPrompt]:
    """Prompts of every task at every length.

    Args:
        documents: articles, for the haystacks.
        count_tokens: tokens of a text.
        tasks: of `TASKS`.
        lengths: most tokens of a prompt.
        per_task: prompts of each task at each length.
        seed: of all draws; a task's prompts do not depend on the other tasks.

    Raises:
        DataError: for an unknown task, too few articles, or a length that holds no haystack.
    """
    unknown = set(tasks) - set(TASKS)
    if unknown:
        raise DataError(f"long prompts: no task {sorted(unknown)[0]!r}; there are {TASKS}")
    articles = [found for one in documents if (found := _sentences(one.text))]
    prompts = []
    for task in tasks:
        for length in lengths:
            for number in range(per_task):
                random = Random(f"{seed}/{task}/{length}/{number}")
                name = f"{task}-{length}-{number}"
                prompts.append(_prompt(name, task, length, articles, count_tokens, random))
    return prompts


def _prompt(
    name: str,
    task: str,
    length: int,
    articles: list[list[str]],
    count_tokens: Callable[[str], int],
    random: Random,
) -> LongPrompt:
    make = _common_word if task == "common_word" else _hidden
    if task == "article":
        make = _article

    def used(size: int) -> tuple[LongPrompt, int]:
        state = Random(random_state)
        prompt = make(name, task, length, articles, size, state)
        whole = prompt.context + prompt.question + "".join(prompt.answers)
        return prompt, count_tokens(whole) + _SPARE

    random_state = random.random()
    # The longest haystack that fits; size grows with tokens, so halving steps find it.
    size, step = 0, 1
    while used(size + step)[1] <= length:
        size, step = size + step, 2 * step
    while step:
        if used(size + step)[1] <= length:
            size += step
        step //= 2
    if size < 2:
        raise DataError(f"long prompts: {length} tokens hold no haystack for {task}; ask for more")
    return used(size)[0]


def _hidden(
    name: str, task: str, length: int, articles: list[list[str]], size: int, random: Random
) -> LongPrompt:
    """Sentences to be found, hidden in order among `size` sentences of articles."""
    hay = _haystack(articles, size, random)
    words = [f"{random.choice(_ADJECTIVES)} {one}" for one in nouns(5, random)]
    numbers = [str(random.randrange(10**6, 10**7)) for _ in range(4)]
    if task == "chain":
        value = str(random.randrange(10**4, 10**5))
        names = random.sample([f"{a}{b}" for a in "ABCDEFGH" for b in "KLMNPQRS"], 4)
        needles = [f"Variable {names[0]} is set to {value}."]
        needles += [f"Variable {b} is set to variable {a}." for a, b in pairwise(names)]
        question = f"The variables that hold {value} are, in the order in which they were set:"
        answers = [f" {names[0]}", *(f", {one}" for one in names[1:])]
    else:
        keys = {"needle": words[:1], "multikey": words[:4], "multivalue": words[:1] * 3}[task]
        needles = [
            f"The secret number of the {a} is {b}." for a, b in zip(keys, numbers, strict=False)
        ]
        wanted = random.randrange(len(keys)) if task == "multikey" else 0
        question = f"The secret number of the {keys[wanted]} is"
        answers = [f" {numbers[wanted]}"]
        if task == "multivalue":
            question = f"The three secret numbers of the {keys[0]} are, as the text has them:"
            answers = [f" {numbers[0]}", *(f", {one}" for one in numbers[1:3])]
    places = sorted(random.randrange(len(hay) + 1) for _ in needles)
    for place, needle in reversed(list(zip(places, needles, strict=True))):
        hay.insert(place, needle)
    return LongPrompt(name, task, length, " ".join(hay), f"\n\n{question}", answers)


def _common_word(
    name: str, task: str, length: int, articles: list[list[str]], size: int, random: Random
) -> LongPrompt:
    """A list of words of which one comes four times as often as any other."""
    words = nouns(20, random)
    often, others = words[0], words[1:]
    each = max(size // (len(others) + 4), 1)
    listed = [often] * (4 * each) + [one for one in others for _ in range(each)]
    listed += others[: max(size - len(listed), 0)]
    random.shuffle(listed)
    context = "\n".join(f"{number}. {word}" for number, word in enumerate(listed, start=1))
    question = "\n\nThe word that occurs most often in this list is"
    return LongPrompt(name, task, length, context, question, [f" {often}"])


def _article(
    name: str, task: str, length: int, articles: list[list[str]], size: int, random: Random
) -> LongPrompt:
    """The end of a sentence that stands somewhere in the text."""
    hay = _haystack(articles, size, random)
    long = [one for one in hay if len(one.split()) >= 10 and hay.count(one) == 1]
    words = (random.choice(long) if long else hay[0]).split()
    begin, end = " ".join(words[:-4]), " ".join(words[-4:])
    question = f'\n\nThe text says, word for word: "{begin}'
    return LongPrompt(name, task, length, " ".join(hay), question, [f" {end}"])


def _haystack(articles: list[list[str]], size: int, random: Random) -> list[str]:
    """`size` sentences in a row, going on with another article where one ends."""
    if not articles:
        raise DataError("long prompts: the articles hold no sentences")
    order = random.sample(range(len(articles)), len(articles))
    found: list[str] = []
    while len(found) < size:
        for index in order:
            found += articles[index]
            if len(found) >= size:
                break
    return found[:size]


def _sentences(text: str) -> list[str]:
    """Whole sentences of a text."""
    pieces = re.split(r"(?<=[.!?])\s+", text)
    return [" ".join(one.split()) for one in pieces if one.endswith((".", "!", "?"))]
