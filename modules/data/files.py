"""Rows of a local file: text, JSON lines, JSON or Parquet, each also inside gzip, read strictly.

A row is read as it is or refused with its file, its line and a remedy: nothing is skipped, replaced
or converted. gzip is known by its content. The format follows from the name unless it is given, and
text that looks like one of the other formats is refused, so that no braces end up in a text.
"""

import codecs
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from effllm.modules.errors import ConfigError, DataError

FORMATS = ("text", "json_lines", "json", "parquet")
LOOKED_AT = 1000  # rows that are read where a look must be cheap

_SUFFIXES = {".jsonl": "json_lines", ".ndjson": "json_lines", ".parquet": "parquet"}
_TABLES = (".csv", ".tsv")
_PACKED = {
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_HEAD = 4096  # bytes that formats are told apart by
_JSON = re.compile(r'\ufeff?\s*(\[\s*)?\{\s*"')  # so begins every list or line of objects
_HALF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file of rows.

    Args:
        path: where it is.
        format: of `FORMATS`; None: as the name says (.jsonl, .ndjson, .json, .parquet, with .gz
            behind or not), else text.
        encoding: of text and JSON.
        label: what the file is for, in messages.
    """

    path: str
    format: str | None
    encoding: str
    label: str

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            raise ConfigError(
                f"{self.label}: path: expected the name of a file, found {self.path!r}"
            )
        if self.format is not None and self.format not in FORMATS:
            raise ConfigError(
                f"{self.label}: format: {', '.join(FORMATS)} or null, found {self.format!r}"
            )
        try:
            "".encode(self.encoding)
        except (LookupError, UnicodeError, TypeError) as error:
            raise ConfigError(
                f"{self.label}: encoding: {self.encoding!r} is none that Python knows; give one "
                "such as utf-8, utf-16 or latin-1"
            ) from error

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return Path(self.path).name

    @property
    def sha256(self) -> str:
        """Checksum of the bytes on disk.

        Raises:
            DataError: if the file is missing or cannot be read.
        """
        with self._opened() as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @property
    def kind(self) -> str:
        """The format that the file is read in.

        Raises:
            DataError: if name and content leave it open, or the file is packed in another way.
        """
        with self._opened() as stream:
            head = self._checked(lambda: self._unpacked(stream).read(_HEAD))
        for magic, packing in _PACKED.items():
            if head.startswith(magic):
                raise self.refusal(f"is packed with {packing}; unpack it, or pack it with gzip")
        if self.format is not None:
            return self.format
        suffix = Path(self.name.lower().removesuffix(".gz")).suffix
        text = head.decode(self.encoding, errors="ignore")
        if suffix == ".json":  # one list, or one object a line, as C4 is published
            return "json" if text.lstrip("\ufeff \t\r\n").startswith("[") else "json_lines"
        if suffix in _SUFFIXES:
            return _SUFFIXES[suffix]
        if suffix in _TABLES:
            found = "a table"
        elif head.startswith(_PARQUET):
            found = "Parquet"
        elif _JSON.match(text):
            found = "JSON"
        else:
            return "text"
        raise self.refusal(
            f"looks like {found}; say how to read it with format={'|'.join(FORMATS)} beside path="
        )

    @property
    def way(self) -> str:
        """How the file is read, for digests: `local` alone is as its content asks for, in UTF-8."""
        parts, asked = ["local"], None
        with contextlib.suppress(DataError):
            asked = dataclasses.replace(self, format=None).kind
        if self.kind != asked:
            parts.append(self.kind)
        if codecs.lookup(self.encoding).name != "utf-8":
            parts.append(codecs.lookup(self.encoding).name)
        return " ".join(parts)

    def refusal(self, why: str, number: int | None = None) -> DataError:
        """What to raise about the file, or about its row `number`."""
        unit = "line" if number is not None and self.kind in ("text", "json_lines") else "row"
        place = "" if number is None else f", {unit} {number}"
        return DataError(f"{self.name}{place}: {why}")

    def texts(self, column: str) -> Iterator[str]:
        """The lines of a text without their ends; of other formats the texts of a column.

        Raises:
            DataError: with file, line and remedy, at the first row that is not as it should be.
        """
        if self.kind == "text":
            yield from (line.removesuffix("\n") for _, line in self._lines(newline=None))
            return
        for number, row in self.rows([column]):
            if not isinstance(row, dict):
                raise self.refusal(
                    f"expected a JSON object with {column!r}, found {type(row).__name__}", number
                )
            if column not in row:
                raise self.refusal(
                    f"expected a column {column!r}, found {', '.join(map(repr, row)) or 'none'}; "
                    "choose one with column=… beside path=",
                    number,
                )
            if not isinstance(row[column], str):
                found = "null" if row[column] is None else f"{type(row[column]).__name__}"
                raise self.refusal(
                    f"expected text in column {column!r}, found {found}; repair the row or take "
                    "it out of the file",
                    number,
                )
            yield row[column]

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Number, from 1, and content of each row of a file that is no text.

        Args:
            columns: those that are needed; a Parquet file that has them is read no further.

        Raises:
            DataError: with file, line and remedy, at the first row that is not as it should be.
        """
        read = {"json_lines": self._json_lines, "json": self._json}.get(self.kind)
        if read is None and self.kind == "text":
            raise self.refusal(
                "has columns nowhere: it is read as text; say format=json_lines|json|parquet "
                "beside path="
            )
        return read() if read is not None else self._parquet(columns)

    def _lines(self, newline: str | None) -> Iterator[tuple[int, str]]:
        number = 0
        with self._opened() as stream:
            try:
                lines = io.TextIOWrapper(
                    self._unpacked(stream),
                    encoding=self.encoding,
                    errors="surrogateescape",  # so that the line of a wrong byte is known
                    newline=newline,
                )
                for number, line in enumerate(lines, start=1):
                    if number == 1:
                        line = line.removeprefix("\ufeff")
                    if not line.isascii() and _HALF_PAIR.search(line):
                        raise UnicodeError
                    if "\0" in line:
                        raise self.refusal(
                            "a NUL character: this is no text, or not in "
                            f"{self.encoding} (try encoding=utf-16 beside path=)",
                            number,
                        )
                    yield number, line
            except UnicodeError as error:
                raise self.refusal(
                    f"this is not {self.encoding}; give the file's encoding with encoding=… beside "
                    "path= (latin-1, utf-16, …), or save it as UTF-8",
                    max(number, 1),
                ) from error
            except (OSError, EOFError, zlib.error) as error:
                raise self._unreadable(error) from error

    def _json_lines(self) -> Iterator[tuple[int, Any]]:
        for number, line in self._lines(newline="\n"):
            if line.strip():
                yield number, self._parsed(line, number)

    def _json(self) -> Iterator[tuple[int, Any]]:
        rows = self._parsed("".join(line for _, line in self._lines(newline="\n")), None)
        if not isinstance(rows, list):
            raise self.refusal(
                "expected a list of JSON objects; one object a line is format=json_lines"
            )
        yield from enumerate(rows, start=1)

    def _parsed(self, text: str, number: int | None) -> Any:
        try:
            value = json.loads(text)
            if "\\ud" in text.lower():  # half a pair can be written down in JSON, not in UTF-8
                json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise self.refusal(
                r"half a surrogate pair (such as \ud83d) is no text; repair the row or take it "
                "out of the file",
                number,
            ) from error
        except (ValueError, RecursionError) as error:
            wanted = "a JSON object" if number is not None else "a list of JSON objects"
            raise self.refusal(
                f"expected {wanted} ({error}); plain text is format=text beside path=", number
            ) from error
        return value

    def _parquet(self, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
        import pyarrow
        import pyarrow.parquet

        number = 0
        with self._opened() as stream:
            try:
                table = pyarrow.parquet.ParquetFile(self._unpacked(stream))
                there = set(columns) <= set(table.schema_arrow.names)
                for batch in table.iter_batches(columns=list(columns) if there else None):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
            except (pyarrow.ArrowException, OSError, EOFError, zlib.error) as error:
                raise self._unreadable(error) from error
            except UnicodeDecodeError as error:
                raise self.refusal(
                    f"a text after row {number} is not UTF-8; repair the file"
                ) from error

    def _opened(self) -> io.BufferedReader:
        def opened() -> io.BufferedReader:
            if not stat.S_ISREG(Path(self.path).stat().st_mode):
                raise DataError(f"{self.label}: path={self.path}: no file but a folder or device")
            return Path(self.path).open("rb")

        return self._checked(opened)

    def _unpacked(self, stream: io.BufferedReader) -> BinaryIO:
        packed = stream.read(len(_GZIP)) == _GZIP
        stream.seek(0)
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if packed else stream

    def _checked(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (FileNotFoundError, ValueError) as error:  # ValueError: a NUL in the path
            raise DataError(f"{self.label}: path={self.path}: no such file") from error
        except (OSError, EOFError, zlib.error) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        line = " ".join(reason.split())
        return DataError(
            f"{self.label}: path={self.path}: cannot be read ({line}); see that it is whole and "
            "that you may read it"
        )
