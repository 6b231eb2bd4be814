"""The leaderboard's page: per group a table, equal sizes, equal quality and frontiers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.files import write_json
from effllm.pipelines.reports.figures import figure, log_ticks, write_csv
from effllm.pipelines.reports.leaderboard.entries import MEASURES, Entry, Group
from effllm.pipelines.reports.page import Block, Figure, Heading, Page, Table, Text
from effllm.pipelines.reports.table import Cell, Column, columns, make_table

EQUAL = 0.01  # sizes that differ by no more count as equal
LOSSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # shares of perplexity over dense
QUALITIES = ("perplexity", "perplexity_change", "nll_change")  # pictured against these costs
COSTS = ("bytes", "parameters", "token_bytes", "tokens_per_second", "prefill")
_LABELLED = 14  # points of a picture that get a name


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
            if (lost := loss(one)) is not None and lost <= bound and not one.is_reference
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
    for one in entries[1:]:
        first = found[-1][0].value(size) or 0
        if (one.value(size) or 0) <= (1 + EQUAL) * first:
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


def _first(measures: Sequence[str], group: Group) -> str | None:
    return next((name for name in measures if name in group.measures), None)


def _is_task(key: str) -> bool:
    return key.endswith("/acc")


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]


def _listed(value: object) -> str:
    several = value if isinstance(value, list) else [] if value is None else [value]
    return ", ".join(map(str, several))
