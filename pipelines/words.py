"""Values, counts, times and columns as the terminal shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def short(value: Any) -> str:
    """A value of a manifest, numbers to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def figures(metrics: Mapping[str, Any], most: int) -> str:
    """The first metrics that have a value."""
    known = [f"{key} {short(value)}" for key, value in metrics.items() if value is not None]
    return ", ".join(known[:most])


def counted(number: int, noun: str) -> str:
    """`1 result`, `2 results`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def time_left(seconds: Iterable[float | None]) -> str:
    """What stages will take together, from what is known of each."""
    each = list(seconds)
    known = [taken for taken in each if taken is not None]
    unknown = counted(len(each) - len(known), "stage")
    if not known:
        return f"{unknown} of unknown time" if each else "nothing to do"
    more = f" and {unknown} of unknown time" if len(known) < len(each) else ""
    return f"about {duration(sum(known))}{more}"


def columns(rows: Sequence[Sequence[str]], right: str = "") -> Iterator[str]:
    """Lines with cells below each other.

    Args:
        rows: cells; all rows have as many.
        right: a letter for each column, `r` where cells stand at the right; missing ones at the
            left.
    """
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if right[place : place + 1] == "r" else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
