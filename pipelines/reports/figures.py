"""Figures as PNG, SVG and the CSV that they were drawn from, in one style."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

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
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(_STYLE):
        canvas, axes = plt.subplots(1, panels, figsize=size, layout="constrained", **options)
        try:
            yield axes
            canvas.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
            canvas.savefig(folder / f"{name}.svg", metadata={"Date": None})
        finally:
            plt.close(canvas)


def write_csv(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the numbers behind a figure; columns in the order of the first row."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
