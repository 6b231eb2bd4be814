"""All methods of a store on one page, from the `results.json` of its reports alone.

Perplexities stand side by side only where model, scale, text and windows agree: rows of several
reports that name the same protocol make one group. Speeds, caches and answers depend on the machine
and the prompts of a run, so each report makes a group of its own for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from effllm.modules.errors import DataError
from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.files import write_json
from effllm.pipelines.reports.figures import figure, log_ticks, write_csv
from effllm.pipelines.reports.page import Block, Figure, Heading, Page, Table, Text
from effllm.pipelines.reports.table import Cell, Column, columns, make_table

NEEDED = ("scale", "model", "texts")  # of a row; rows of reports made before lack them
EQUAL = 0.01  # sizes that differ by no more count as equal
LOSSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # shares of perplexity over dense
_PERPLEXITY = re.compile(r"test/(.+)/ppl")
_LABELLED = 14  # points of a picture that get a name


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
QUALITIES = ("perplexity", "perplexity_change", "nll_change")  # pictured against these costs
COSTS = ("bytes", "parameters", "token_bytes", "tokens_per_second", "prefill")


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


def write_leaderboard(folder: Path, groups: Sequence[Group], old: Sequence[str]) -> None:
    """Write the page, its pictures and `leaderboard.json`.

    Args:
        folder: to be written to.
        groups: of rows.
        old: reports that were left out because they do not say of what they are.
    """
    count = sum(len(group.entries) for group in groups)
    page = Page(
        "Leaderboard",
        f"{count} results of {len({one.report for group in groups for one in group.entries})} "
        "reports. Rows of a table share model, scale and texts. Perplexities are compared only on "
        "the same windows, speeds and caches only inside one report.",
        question="Which method is smallest, fastest and best on the same text?",
        answer=" ".join(filter(None, map(_answer, groups[:3]))),
        data="leaderboard.json",
    )
    if old:
        page.add(Text(f"Left out, made by an older version (run again): {', '.join(old)}."))
    for number, group in enumerate(groups):
        page.add(Heading(group.title), Text(f"Texts: {group.texts or 'none named'}."))
        page.add(group_table(group), *equal_sizes(group), equal_quality(group))
        page.add(*frontiers(group, folder / "figures", f"group-{number}"))
    folder.mkdir(parents=True, exist_ok=True)
    page.write(folder)
    write_json(folder / "leaderboard.json", [group.plain for group in groups])


def group_table(group: Group) -> Table:
    """All rows of a group with the measures that any of them knows."""
    tasks = sorted({key for one in group.entries for key in one.row["metrics"] if _is_task(key)})
    dense = group.dense.value("perplexity") if group.dense else None

    def over_dense(one: Entry) -> Cell:
        value = one.value("perplexity")
        return value / dense - 1 if value and dense and not one.is_dense else None

    shared = [_column(name) for name in group.measures]
    return make_table(
        group.entries,
        Column("Method", lambda one: one.name),
        Column("paper", lambda one: one.row["paper"]),
        *shared[:1],
        Column("over dense, %", over_dense, "+.1%"),
        *shared[1:],
        *columns(
            {key: f"{key.removesuffix('/acc').replace('_', ' ')}, %" for key in tasks},
            lambda one, key: one.row["metrics"].get(key),
            ".1f",
            max,
        ),
        Column("seed", lambda one: _listed(one.row["seed"])),
        Column("report", lambda one: one.report),
        ranked=lambda one: not one.is_reference,
    )


def equal_sizes(group: Group) -> list[Table]:
    """A table for all rows of one size, for each kind of size that the group knows."""
    quality = _first(QUALITIES, group)
    if quality is None:
        return []
    tables = []
    for size in ("bytes", "token_bytes", "parameters"):
        known = [one for one in group.entries if one.value(size) and one.value(quality) is not None]
        known.sort(key=lambda one: (one.value(size), one.value(quality)))
        for same in _clusters(known, size):
            held = _column(size).text((same[0].value(size) or 0) / MEASURES[size].unit)
            tables.append(
                make_table(
                    same,
                    Column(f"{MEASURES[size].title}: {held}", lambda one: one.name),
                    _column(quality),
                    *(_column(name) for name in ("accuracy", "speedup")),
                )
            )
    return tables


def equal_quality(group: Group) -> Table | None:
    """What is smallest and fastest among rows that lose no more than so much perplexity."""
    reference = group.dense.value("perplexity") if group.dense else None
    costs = [name for name in COSTS if name in group.measures]

    def loss(one: Entry) -> float | None:
        value = one.value("perplexity")
        if value is None:
            return one.value("perplexity_change")
        return value / reference - 1 if reference else None

    def leading(bound: float, cost: str) -> str | None:
        best = MEASURES[cost].best or min
        known = {
            one.name: value
            for one in group.entries
            if (lost := loss(one)) is not None and lost <= bound and not one.is_dense
            if (value := one.value(cost)) is not None
        }
        if not known:
            return None
        leader = best(known.values())
        name = next(one for one, value in known.items() if value == leader)
        return f"{name} ({_column(cost).text(known[name] / MEASURES[cost].unit)})"

    rows = [bound for bound in LOSSES if any(leading(bound, cost) for cost in costs)]
    if not rows:
        return None
    return make_table(
        rows,
        Column("Perplexity worse by at most", lambda bound: f"{100 * bound:.0f} %"),
        *columns({cost: f"best {_lower(MEASURES[cost].title)}" for cost in costs}, leading),
        note="Point estimates; the table above has the intervals.",
    )


def frontiers(group: Group, folder: Path, name: str) -> list[Block]:
    """Pictures of quality against each cost that at least three rows know."""
    quality = _first(QUALITIES, group)
    blocks: list[Block] = []
    for cost in COSTS if quality else ():
        points = [
            (x / MEASURES[cost].unit, y, one)
            for one in group.entries
            if (x := one.value(cost)) is not None and (y := one.value(quality or "")) is not None
        ]
        if len({point[0] for point in points}) > 2:
            assert quality is not None
            blocks.append(_draw(points, quality, cost, folder, f"{name}-{cost}", group.title))
    return blocks


def _draw(
    points: Sequence[tuple[float, float, Entry]],
    quality: str,
    cost: str,
    folder: Path,
    name: str,
    title: str,
) -> Figure:
    sign = -1 if MEASURES[cost].best is max else 1
    ordered = sorted(points, key=lambda point: (sign * point[0], point[1]))
    front: list[tuple[float, float, Entry]] = []
    for point in ordered:
        if not front or point[1] < front[-1][1]:
            front.append(point)
    percent = 100 if "%" in MEASURES[quality].title else 1
    with figure(folder, name, size=(7.5, 4.6)) as axes:
        axes.plot([x for x, _, _ in ordered], [percent * y for _, y, _ in ordered], "o", ms=5)
        axes.step(
            [x for x, _, _ in front],
            [percent * y for _, y, _ in front],
            where="post",
            color="#c8553d",
            lw=1.2,
        )
        for x, y, one in front[:_LABELLED]:
            axes.annotate(
                one.name, (x, percent * y), xytext=(4, 5), textcoords="offset points", fontsize=8
            )
        if quality == "perplexity":
            axes.set_yscale("log")
            log_ticks(axes.yaxis)
        axes.margins(x=0.12, y=0.12)
        axes.set_xlabel(MEASURES[cost].title)
        axes.set_ylabel(MEASURES[quality].title)
    write_csv(
        folder,
        name,
        [
            {"method": one.name, "report": one.report, cost: x, quality: y, "on_the_frontier": on}
            for x, y, one in ordered
            for on in [any(one is other for _, _, other in front)]
        ],
    )
    caption = f"{MEASURES[quality].title} against {_lower(MEASURES[cost].title)}. {title}."
    return Figure(name, f"{caption} The line joins what nothing beats in both; it has the names.")


def _answer(group: Group) -> str:
    """The best row of a group in a sentence; empty if the group has no measure with a best end."""
    measure = next((name for name in group.measures if MEASURES[name].best), None)
    known = [one for one in group.entries if measure and one.value(measure) is not None]
    others = [one for one in known if not one.is_reference]
    if measure is None or not others:
        return ""
    best = MEASURES[measure].best
    values = [one.value(measure) for one in others]
    leader = others[values.index(best(value for value in values if value is not None))]  # type: ignore[misc]
    shown = _column(measure).text(_cell(leader, measure))
    what = _lower(MEASURES[measure].title)
    return f"{group.title}: {leader.name} has the best figure, {what} {shown}."


def _clusters(entries: Sequence[Entry], size: str) -> list[list[Entry]]:
    """Runs of at least two methods whose sizes are equal; `entries` are in order of size."""
    found: list[list[Entry]] = [[entries[0]]] if entries else []
    for before, one in pairwise(entries):
        first = found[-1][0].value(size) or 0
        if (one.value(size) or 0) <= (1 + EQUAL) * first and before is found[-1][-1]:
            found[-1].append(one)
        else:
            found.append([one])
    return [same for same in found if len(same) > 1]


def _column(measure: str) -> Column:
    about = MEASURES[measure]
    return Column(about.title, lambda one: _cell(one, measure), about.form, about.best)


def _cell(one: Entry, measure: str) -> Cell:
    found, unit = one.figure(measure), MEASURES[measure].unit
    return Interval(found.value / unit, found.low / unit, found.high / unit) if found else None


def _order(one: Entry, measure: str) -> float:
    value = one.value(measure) if measure else None
    if value is None:
        return float("inf")
    return -value if MEASURES[measure].best is max else value


def _first(measures: Sequence[str], group: Group) -> str | None:
    return next((name for name in measures if name in group.measures), None)


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


def _is_task(key: str) -> bool:
    return key.endswith("/acc")


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]


def _listed(value: object) -> str:
    several = value if isinstance(value, list) else [] if value is None else [value]
    return ", ".join(map(str, several))
