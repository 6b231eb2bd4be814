"""Results of all reports in groups that may be compared, from their `results.json` alone.

Perplexities stand side by side only where model, scale, text and windows agree: rows of several
reports that name the same protocol make one group. Speeds, caches and answers depend on the machine
and the prompts of a run, so each report makes a group of its own for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effllm.modules.errors import DataError
from effllm.modules.evaluation.intervals import Interval

NEEDED = ("scale", "model", "texts")  # of a row; rows of reports made before lack them
_PERPLEXITY = re.compile(r"test/(.+)/ppl")


@dataclass(frozen=True)
class Measure:
    """A figure that rows of several papers share.

    Attributes:
        title: of its column.
        keys: names of it in `metrics`, the first that a row has.
        form: see `Column`.
        best: `min` or `max`; None if neither end is better.
        unit: what its values are divided by when shown.
    """

    title: str
    keys: tuple[str, ...]
    form: str = ""
    best: Callable[[Iterable[float]], float] | None = None
    unit: float = 1.0


MEASURES = {
    "perplexity": Measure("Perplexity", (), best=min),
    "perplexity_change": Measure(
        "Perplexity over the full cache, %", ("perplexity_change",), "+.1%", min
    ),
    "nll_change": Measure("Nats over plain decoding", ("target_nll_over_plain",), "+.3f", min),
    "accuracy": Measure("Right, %", ("accuracy", "right", "score"), ".1%", max),
    "parameters": Measure("Parameters, M", ("parameters",), ".2f", unit=1e6),
    "bytes": Measure("Bytes held, MB", ("weight_file_bytes",), ".1f", min, 1e6),
    "token_bytes": Measure(
        "Cache, bytes per token", ("bytes_per_token", "cache_bytes_per_token"), ",.0f", min
    ),
    "tokens_per_second": Measure("Tokens/s", ("tokens_per_second",), ".1f", max),
    "speedup": Measure("Times as fast", ("decode_speedup", "speed_over_plain"), ".2f", max),
    "prefill": Measure("Prompt, s", ("prefill_seconds",), ".3f", min),
    "tokens_per_pass": Measure("Tokens per pass", ("acceptance_length",), ".2f", max),
}


@dataclass(frozen=True)
class Entry:
    """A row of `results.json` in a group.

    Attributes:
        report: folder of its report.
        row: as it was written.
        protocol: text and windows of its perplexity; empty if it has none.
    """

    report: str
    row: Mapping[str, Any]
    protocol: str

    @property
    def name(self) -> str:
        """Method and pattern."""
        return ", ".join(filter(None, (self.row["title"], self.row["pattern"])))

    @property
    def is_dense(self) -> bool:
        """Whether it is the model that the others were made of."""
        return self.row["method"].lower() == "dense"

    @property
    def is_reference(self) -> bool:
        """Whether it is what others are seen against, and no method that could be used."""
        return self.is_dense or self.row["method"].startswith("oracle")

    def figure(self, measure: str) -> Interval | None:
        """A shared measure with its interval, None if the row does not know it."""
        metrics, keys = self.row["metrics"], MEASURES[measure].keys
        if measure == "perplexity":
            keys = (f"test/{self.protocol}/ppl",)
        key = next((key for key in keys if metrics.get(key) is not None), None)
        if key is None:
            return None
        return Interval(float(metrics[key]), *(self.row["intervals"].get(key) or ()))

    def value(self, measure: str) -> float | None:
        """The same without its interval."""
        found = self.figure(measure)
        return None if found is None else found.value


@dataclass(frozen=True)
class Group:
    """Rows that may be compared: the same model, scale and texts, and the same windows or report.

    Attributes:
        model: that all were made of.
        scale: of the runs.
        texts: that were read.
        place: protocol of the perplexities, or the report.
        entries: the rows.
    """

    model: str
    scale: str
    texts: str
    place: str
    entries: list[Entry]

    @property
    def title(self) -> str:
        """For a heading."""
        model = f"{self.model.rpartition('/')[2]}, " if self.model else ""
        return f"{model}{self.scale}: {self.place}"

    @property
    def measures(self) -> list[str]:
        """Those that any row knows."""
        return [
            name for name in MEASURES if any(one.figure(name) is not None for one in self.entries)
        ]

    @property
    def dense(self) -> Entry | None:
        """What the others are measured against, if it is there."""
        return next((one for one in self.entries if one.is_dense), None)

    @property
    def plain(self) -> dict[str, Any]:
        """For `leaderboard.json`."""
        facts = {name: getattr(self, name) for name in ("model", "scale", "texts", "place")}
        return {**facts, "rows": [_plain(one, self.measures) for one in self.entries]}


def read_rows(reports: Path) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """(report, row) of all reports in a folder, and the reports that are too old to say of what.

    Raises:
        DataError: for a file that is not such a list.
    """
    rows, old = [], []
    for file in sorted(reports.glob("[!.]*/results.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            named = [all(key in row for key in NEEDED) for row in found]
        except (ValueError, TypeError) as error:
            raise DataError(f"{file}: cannot be read ({error}); run its report again") from error
        if not all(named):
            old.append(file.parent.name)
            continue
        rows += [(file.parent.name, row) for row in found]
    return rows, old


def gather(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    model: str | None,
    text: str | None,
    scale: str | None,
) -> list[Group]:
    """Groups of rows that may be compared, the largest first.

    Args:
        rows: (report, row).
        model: only models with this in their name.
        text: only rows with this in the names of their texts.
        scale: only this scale; None: all but smoke, whose figures mean nothing.

    Raises:
        DataError: if no row is left, with what there is.
    """
    rows = list(rows)
    kept = [
        (report, row)
        for report, row in rows
        if (row["scale"] == scale if scale else row["scale"] != "smoke")
        and (model or "").lower() in row["model"].lower()
        and any((text or "").lower() in name.lower() for name in row["texts"] or [""])
    ]
    if not kept:
        raise DataError(f"no result to show: {_what_there_is(rows)}")
    groups: dict[tuple[str, ...], Group] = {}
    seen: set[tuple[str, ...]] = set()
    for report, row in kept:
        found = [match[1] for key in row["metrics"] if (match := _PERPLEXITY.fullmatch(key))]
        for protocol in found or [""]:
            entry = Entry(report, row, protocol)
            place = protocol or f"report {report}"
            facts = (row["model"], row["scale"], ", ".join(row["texts"]), place)
            result = (*facts, str(row["artifact"]), row["method"], row["pattern"])
            if result in seen:  # studies show the rows of the paper that they are about, too
                continue
            seen.add(result)
            groups.setdefault(facts, Group(*facts, entries=[])).entries.append(entry)
    for group in groups.values():
        first = group.measures[0] if group.measures else ""
        group.entries.sort(key=lambda one: _order(one, first))
    shown = [group for group in groups.values() if group.measures]
    return sorted(shown, key=lambda group: (-len(group.entries), group.title))


def _order(one: Entry, measure: str) -> float:
    value = one.value(measure) if measure else None
    if value is None:
        return float("inf")
    return -value if MEASURES[measure].best is max else value


def _plain(one: Entry, measures: Sequence[str]) -> dict[str, Any]:
    known = {name: figure for name in measures if (figure := one.figure(name)) is not None}
    facts = {key: one.row[key] for key in ("paper", "method", "title", "pattern", "seed")}
    return {
        "report": one.report,
        **facts,
        "artifact": one.row["artifact"],
        "measures": {name: found.value for name, found in known.items()},
        "intervals": {name: found.ends for name, found in known.items()},
    }


def _what_there_is(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    if not rows:
        return "no report has rows; run a paper first, such as effllm run paper=sds"
    found = {key: sorted({str(row[key]) for _, row in rows}) for key in ("scale", "model")}
    texts = sorted({name for _, row in rows for name in row["texts"]})
    told = [f"{key}s {', '.join(filter(None, found[key]))}" for key in found]
    return f"the reports have {'; '.join(told)}; texts {', '.join(texts)}"
