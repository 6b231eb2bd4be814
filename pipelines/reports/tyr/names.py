"""What a model of the Týr reports is called, by what was done to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from effllm.pipelines.reports.models.comparison import Comparison, Row, place
from effllm.pipelines.reports.models.subjects import Subject

BASELINES = {
    "random": "Random units",
    "magnitude": "Magnitude",
    "wanda": "Wanda-sp",
    "flap": "FLAP-style, with bias",
    "shortgpt": "ShortGPT, whole blocks",
}
SECOND = "ZipLM-style, second order, even"
LOCAL = "Týr local pruning, even"
EVEN = "Týr supernet, even"
SEARCHED = "Týr, searched"
# Setting -> its usual value, and another one in words.
_USUAL = {
    "accumulation": ("expectation", "{} accumulation"),
    "accumulate_at": ("sublayer", "accumulated per {}"),
    "score": ("official", "score {}"),
    "refit": (True, "no refit"),
    "attention_unit": ("head", "unit {}"),
    "layout": ("compact", "layout {}"),
}


def describe_all(subjects: Iterable[Subject]) -> list[Row]:
    """Rows in their order: by sparsity, then from weak baselines to the searched model.

    The paper's search has no guided generations: a search without them is a variant only where one
    with them stands beside it.
    """
    rows = [describe(subject) for subject in subjects]
    guided = {(row.base, row.pattern) for row in rows if _guided(row)}
    return sorted(
        (
            replace(row, base=f"{row.base}_variant", method=f"{row.method}: evolution alone")
            if (row.base, row.pattern) in guided and not _guided(row)
            else row
            for row in rows
        ),
        key=lambda row: (_removed(row.pattern), order(row)),
    )


def describe(subject: Subject) -> Row:
    """Name a model by its history: `base` is the kind of method, `pattern` the sparsity."""
    if not subject.history:
        return Row(subject, "dense", "", "Dense")
    step = subject.history[-1]
    sparsity = f"{100 * step['sparsity']:g} %"
    if step["stage"] == "prune_units":
        kind = step["baseline"]
        return Row(subject, kind, sparsity, BASELINES.get(kind, kind))
    if step["levels"] == 1 and step["score"] == "second" and step["accumulation"] == "level0":
        return Row(subject, "second", sparsity, SECOND)
    usual: dict[str, tuple[Any, str]] = dict(_USUAL)
    if step["levels"] == 1:
        kind, name = "local", LOCAL
        usual["accumulation"] = "level0", _USUAL["accumulation"][1]
    elif step["searched"]:
        kind, name = "searched", SEARCHED
        if step["budget"] != "units":
            name = f"{SEARCHED} within {step['budget']}"
        if step["iteration"] > 1:
            kind, name = f"searched_{step['iteration']}", f"{name}, {step['iteration']} rounds"
    else:
        kind, name = "even", EVEN
        if step["iteration"] > 1:
            kind, name = "centre", f"Týr, centre of round {step['iteration']}"
    marks = [
        words.format("no" if step[key] == "none" else step[key])
        for key, (value, words) in usual.items()
        if step[key] != value
    ]
    if marks:
        kind, name = f"{kind}_variant", f"{name}: {', '.join(marks)}"
    return Row(subject, kind, sparsity, name)


def is_searched(row: Row) -> bool:
    """Whether a search distributed its units."""
    return row.base.startswith("searched")


def order(row: Row) -> tuple[int, str]:
    """Place of a method among those of its sparsity."""
    base = row.base.removesuffix("_variant")
    kinds = ("dense", *BASELINES, "second", "local", "even", "searched")
    return 2 * place(base, *kinds) + (base != row.base), row.method


def sparsities(data: Comparison) -> list[str]:
    """Sparsities of the rows, rising."""
    return sorted({row.pattern for row in data.rows if row.pattern}, key=_removed)


def by_method(rows: Sequence[Row]) -> list[Row]:
    """Rows in the order of their methods, whatever the sparsity."""
    return sorted(rows, key=order)


def _removed(sparsity: str) -> float:
    return float(sparsity.rstrip(" %") or 0)


def _guided(row: Row) -> bool:
    """Whether guided generations had a part in its search."""
    history = row.subject.history
    return bool(history) and history[-1].get("guided", 0) > 0
