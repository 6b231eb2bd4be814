"""Published benchmarks: rows of a local file or of a set on the hub."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Generic, TypeVar

from effllm.modules.data.files import LOOKED_AT, LocalFile
from effllm.modules.errors import DataError
from effllm.modules.hub import require_on_hub, resolved_commit

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Published(ABC, Generic[Item]):
    """Where the rows of a benchmark come from.

    Args:
        name: label of the set; None: the name of the local file.
        hub: `owner/name` on the hub, or None for a set that is published as a file only.
        subset: configuration of the hub's set, or None.
        split: split of the hub's set.
        revision: branch, tag or commit.
        homepage: where the file is published, for messages.
        path: a local file instead of the hub: JSON lines, a JSON list or Parquet, also in gzip.
        format: of the local file; None: as its name says.
        encoding: of the local file.
        sha256: checksum of the published file; another file does not bear the set's name. None: no
            file is known under that name, and any may bear it.
    """

    name: str | None
    hub: str | None
    subset: str | None
    split: str
    revision: str
    homepage: str | None
    path: str | None = None
    format: str | None = None
    encoding: str = "utf-8"
    sha256: str | None = None

    def identity(self) -> dict[str, str]:
        """Name and revision, or name, way of reading and content of the local file.

        Raises:
            DataError: if the local file is missing, or one of its first rows is not what the
                columns say.
        """
        if self.path is None:
            revision = self.revision
            if self.hub:
                revision = resolved_commit(self.hub, "dataset", revision)
            return {"name": self.hub or self.called, "revision": revision, "sha256": ""}
        file = self._file(self.path)
        self._require_some(islice(self.items(), LOOKED_AT))
        return {"name": self.called, "revision": file.way, "sha256": file.sha256}

    def check(self) -> None:
        """Raise DataError, with the remedy, if the set is out of reach or a file's row is wrong."""
        if self.path is not None:
            self._require_some(self.items())
        elif self.hub is None:
            raise DataError(f"{self.label} come from a file; {self._remedy}")
        else:
            require_on_hub(self.hub, "dataset", self.revision, self._remedy)

    @property
    def label(self) -> str:
        """The set in messages."""
        return "prompts" if self.name is None else f"prompts {self.name}"

    @property
    def called(self) -> str:
        """The set in results: `local file` where it is not the published one."""
        if self.path is None or self.sha256 is None:
            return self.name or Path(self.path or "prompts").name
        return str(self.name) if self._file(self.path).sha256 == self.sha256 else "local file"

    def items(self) -> Iterator[Item]:
        """What is made of all rows, in their order.

        Raises:
            DataError: if the set cannot be reached, or a row is not what the columns say.
        """
        called = self.called
        rows: Iterable[tuple[int, Any]]
        if self.path is None:
            rows = enumerate(self._fetch(), start=1)
        else:
            rows = self._file(self.path).rows(self.columns)
        for number, row in rows:
            yield self.made_of(row, number, called)

    def unexpected(self, number: int) -> DataError:
        """What to raise where row `number`, from 1, is not what the columns say."""
        why = f"expected a JSON object with {self.wanted}; repair the row, or name other columns"
        if self.path is not None:
            return self._file(self.path).refusal(why, number)
        return DataError(f"{self.label}: row {number}: {why}")

    @abstractmethod
    def made_of(self, row: Any, number: int, called: str) -> Item:
        """The item of a row.

        Args:
            row: column -> value.
            number: of the row, from 1.
            called: the set in results.

        Raises:
            DataError: `unexpected`, if the row is not what the columns say.
        """

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """The columns that are read."""

    @property
    @abstractmethod
    def wanted(self) -> str:
        """What a row must have, in words."""

    def _file(self, path: str) -> LocalFile:
        return LocalFile(path=path, format=self.format, encoding=self.encoding, label=self.label)

    def _require_some(self, items: Iterable[Item]) -> None:
        """Read all items, and see that there is one."""
        if sum(1 for _ in items) == 0:
            raise DataError(f"{self.label}: path={self.path}: the file has no rows")

    @property
    def _remedy(self) -> str:
        origin = f" from {self.homepage}" if self.homepage else ""
        return f"get the file{origin} and give it as pipeline.<stage>.source.path=…"

    def _fetch(self) -> list[Any]:
        import datasets

        try:
            rows = datasets.load_dataset(
                self.hub, self.subset, revision=self.revision, split=self.split
            )
            return list(rows)
        except Exception as error:  # its many kinds of failure have no common base
            raise DataError(
                f"{self.label} could not be fetched ({type(error).__name__}); {self._remedy}"
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
