"""Figures as PNG, SVG and the CSV that they were drawn from, in one style."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axis import Axis

COLOURS = ("#4c6a92", "#c8553d", "#588b76", "#8d6a9f", "#c9a227", "#7f7f7f")
_STYLE: Any = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5b6675",
    "axes.grid": True,
    "grid.color": "#e6e9ee",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "effllm",  # the same figure gives the same file
    "svg.fonttype": "path",
}


@contextmanager
def figure(
    folder: Path, name: str, *, size: tuple[float, float], panels: int = 1, **options: Any
) -> Iterator[Any]:
    """Draw into the axes given; on leaving, write `<name>.png` and `<name>.svg` to `folder`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(_STYLE):
        canvas, axes = plt.subplots(1, panels, figsize=size, layout="constrained", **options)
        try:
            yield axes
            canvas.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
            canvas.savefig(folder / f"{name}.svg", metadata={"Date": None})
        finally:
            plt.close(canvas)


@contextmanager
def lines(
    folder: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    by: str,
    x: tuple[str, str],
    y: tuple[str, str],
    size: tuple[float, float],
    panel: str = "",
    style: Callable[[str], str] = lambda value: "o-",
) -> Iterator[Sequence[Any]]:
    """Draw a line for each value of a column into the panels given; on leaving, write it all.

    Args:
        folder: of the figure and of its table.
        name: of both.
        rows: the table, at least one row; lines and panels in their order of appearance.
        by: column whose values get a line each.
        x: column and title of the axis; whole numbers get whole ticks.
        y: the same.
        size: of the figure, inches.
        panel: column whose values get a panel each; empty: one panel.
        style: of a line, as matplotlib writes it.
    """
    values = list(dict.fromkeys(row[by] for row in rows))
    titles = list(dict.fromkeys(row.get(panel, "") for row in rows))
    options = {"panels": len(titles), "squeeze": False, "sharey": len(titles) > 1}
    with figure(folder, name, size=size, **options) as grid:
        for axes, title in zip(grid[0], titles, strict=True):
            mine = [row for row in rows if row.get(panel, "") == title]
            for place, value in enumerate(values):
                points = [(row[x[0]], row[y[0]]) for row in mine if row[by] == value]
                if not points:
                    continue
                (line,) = axes.plot(*zip(*points, strict=True), style(value), markersize=4)
                line.set_color(COLOURS[place % len(COLOURS)])
                line.set_label(f"{by} {value}" if isinstance(value, int) else value)
                if place >= len(COLOURS):
                    line.set_linestyle("--")
            axes.set_title(title, fontsize=11)
            axes.set_xlabel(x[1])
            if all(isinstance(row[x[0]], int) for row in mine):
                whole_ticks(axes.xaxis)
        grid[0][0].set_ylabel(y[1])
        yield grid[0]
        if 1 < len(values) < 5:
            grid[0][-1].legend(fontsize=9)
        elif len(values) > 4:  # they would hide what they name
            handles = grid[0][0].get_legend_handles_labels()
            grid[0][0].figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=9)
    write_csv(folder, name, rows)


def write_csv(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the numbers of a figure; columns in the order of the first row."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def whole_ticks(axis: Axis) -> None:
    """Ticks at whole numbers only, for what is counted."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def log_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers, such as 1, 2, 5, 10, 20."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.axes.minorticks_off()
