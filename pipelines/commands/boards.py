"""`effllm leaderboard`: one page over the reports of a store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from effllm.modules.errors import DataError
from effllm.pipelines.reports.leaderboard.board import write_leaderboard
from effllm.pipelines.reports.leaderboard.entries import gather, read_rows
from effllm.pipelines.words import counted


def make_leaderboard(
    outputs: Path, model: str | None, text: str | None, scale: str | None, as_json: bool
) -> int:
    """Write `leaderboard/index.html` and print where it is, or print its groups as JSON.

    Raises:
        DataError: if no result is left.
    """
    rows, old = read_rows(outputs / "reports")
    if old and not rows:
        raise DataError(
            f"reports {', '.join(old)} were made by an older version; run their papers again"
        )
    groups = gather(rows, model, text, scale)
    if as_json:
        print(json.dumps([group.plain for group in groups], indent=1))
        return 0
    folder = outputs / "leaderboard"
    shutil.rmtree(folder, ignore_errors=True)  # it is made anew, with other filters too
    write_leaderboard(folder, groups, old)
    count = sum(len(group.entries) for group in groups)
    print(f"{counted(count, 'result')}: {folder / 'index.html'}")
    return 0
