"""Files of results: JSON and JSONL that refuse NaN, hard links, listings in name order."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read; refuses NaN."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line; refuses NaN."""
    with path.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where there are no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def iterate_files(folder: Path) -> Iterator[Path]:
    """Regular files below a folder, in name order."""
    return iter(sorted(path for path in folder.rglob("*") if path.is_file()))
