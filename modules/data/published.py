"""Published benchmarks: rows of a local .jsonl file or of a set on the hub."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from effllm.modules.errors import DataError
from effllm.modules.hub import require_on_hub

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Published(ABC):
    """Where the rows of a benchmark come from.

    Args:
        name: label of the set.
        hub: `owner/name` on the hub, or None for a set that is published as a file only.
        subset: configuration of the hub's set, or None.
        split: split of the hub's set.
        revision: branch, tag or commit.
        homepage: where the file is published, for messages.
        path: a local file instead of the hub.
    """

    name: str
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

    def rows(self) -> list[Any]:
        """All rows.

        Raises:
            DataError: if the set cannot be reached, or a line of the file is no JSON.
        """
        return self._read() if self.path is not None else self._fetch()

    def unexpected(self, number: int) -> DataError:
        """What to raise where row `number`, from 1, is not what the columns say."""
        where = Path(self.path).name if self.path is not None else f"prompts {self.name}"
        return DataError(f"{where}, line {number}: expected a JSON object with {self.wanted}")

    @property
    @abstractmethod
    def wanted(self) -> str:
        """The columns that a row must have, in words."""

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
                    raise self.unexpected(number) from error
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


def sample_groups(
    items: list[Item], per_group: int, seed: int, *, group: Callable[[Item], str]
) -> list[Item]:
    """At most `per_group` items of each group, in their order; each group's draw is its own."""
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(group(item), []).append(index)
    chosen: list[int] = []
    for name, members in groups.items():
        chosen += Random(f"{seed}/{name}").sample(members, min(per_group, len(members)))
    return [items[index] for index in sorted(chosen)]
