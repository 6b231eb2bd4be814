"""Tables from rows: a column says what it shows of a row, so that title and cell stay together."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.reports.page import Table
from effllm.pipelines.reports.words import show

Cell = Interval | float | str | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: above it.
        cell: its value in a row; None or an empty text for nothing, text as it is.
        form: how numbers are written; see `words.show`.
        best: `min` or `max`, if one end is better; the best value is bold.
    """

    title: str
    cell: Callable[[Any], Cell]
    form: str = ""
    best: Callable[[Iterable[float]], float] | None = None

    def text(self, value: Cell) -> str:
        """A cell as it is printed."""
        return value if isinstance(value, str) else show(value, self.form)


def columns(
    titles: Mapping[Any, str],
    cell: Callable[[Any, Any], Cell],
    form: str = "",
    best: Callable[[Iterable[float]], float] | None = None,
) -> list[Column]:
    """Columns that show the same of several things.

    Args:
        titles: thing -> title of its column.
        cell: value of a row and a thing.
        form: see `Column`.
        best: see `Column`.
    """

    def column(thing: Any, title: str) -> Column:
        return Column(title, lambda row: cell(row, thing), form, best)

    return [column(*item) for item in titles.items()]


def make_table(
    rows: Iterable[Any],
    *columns: Column,
    note: str = "",
    ranked: Callable[[Any], bool] = lambda row: True,
) -> Table:
    """A line per row; columns without a single entry are left out.

    Args:
        rows: of any kind that the columns know.
        columns: the first one names the rows.
        note: below the table.
        ranked: whether a row takes part where the best value is bold; a reference does not.
    """
    rows = list(rows)
    kept: list[str] = []
    lines: list[list[str]] = [[] for _ in rows]
    best: set[tuple[int, int]] = set()
    for column in columns:
        cells = [column.cell(row) for row in rows]
        if kept and all(cell is None or cell == "" for cell in cells):
            continue
        if column.best is not None:
            values = {
                place: cell.value if isinstance(cell, Interval) else cell
                for place, (row, cell) in enumerate(zip(rows, cells, strict=True))
                if isinstance(cell, Interval | float | int) and ranked(row)
            }
            leading = column.best(values.values()) if len(set(values.values())) > 1 else None
            best |= {(place, len(kept)) for place, value in values.items() if value == leading}
        kept.append(column.title)
        for line, cell in zip(lines, cells, strict=True):
            line.append(column.text(cell))
    return Table(kept, lines, note=note, best=frozenset(best))


def published_tables(folder: Path) -> list[Table]:
    """The paper's own figures: a table for each source in `paper.csv`, a column for each measure.

    Args:
        folder: of the report, with the file: method, model, setting, measure, value, source,
            conditions. Reports of no paper have none.
    """
    if not (folder / "paper.csv").is_file():
        return []
    with (folder / "paper.csv").open(newline="", encoding="utf-8") as file:
        published = list(csv.DictReader(file))
    by_source: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in published:
        rows = by_source.setdefault((row["source"], row["conditions"]), {})
        measure = ", ".join(filter(None, (row["measure"], row["setting"])))
        rows.setdefault(f"{row['model']}, {row['method']}", {})[measure] = row["value"]

    def table(source: str, conditions: str, rows: dict[str, dict[str, str]]) -> Table:
        return make_table(
            rows,
            Column("Published figures (not comparable)", lambda name: name),
            *columns(
                {measure: measure for row in rows.values() for measure in row},
                lambda name, measure: rows[name].get(measure),
            ),
            note=f"{source}: {conditions}. Other models, texts and machines than ours: read "
            "directions, not values.",
        )

    return [table(*source, rows) for source, rows in by_source.items()]
