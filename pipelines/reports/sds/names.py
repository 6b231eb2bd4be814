"""What a model of the SDS reports is called, by what was done to it."""

from __future__ import annotations

from collections.abc import Iterable

from effllm.pipelines.reports.models.comparison import Row, place
from effllm.pipelines.reports.models.subjects import Subject

BASES = {"magnitude": "Magnitude", "wanda": "Wanda", "sparsegpt": "SparseGPT"}
CONTROLS = {
    "refit": "refit of the first mask",
    "iht": "soft mask without re-dense",
    "refit_2": "refit twice, with fresh statistics",
    "refit_3": "refit three times, with fresh statistics",
}
PATTERNS = ("50%", "4:8", "2:4")
MAIN = "2:4"  # verdicts and studies are about this pattern
_FROM_DENSE = "started dense (S-DS)"


def describe_all(subjects: Iterable[Subject]) -> list[Row]:
    """Rows in their order: dense, one-shot, refit, IHT, re-dense, early exit, SDS, variants."""
    return sorted(map(describe, subjects), key=_order)


def describe(subject: Subject) -> Row:
    """Name a model by its history."""
    history = subject.history
    if not history:
        return Row(subject, "dense", "", "Dense")
    prunes = [step for step in history if step["stage"] == "prune"]
    redense = next((step for step in history if step["stage"] == "redense"), None)
    adjusts = [step for step in history if step["stage"] == "adjust"]
    adjust = adjusts[0] if adjusts else None
    if not prunes:
        return Row(subject, "dense", "", "Dense, re-densed (S-DS)", "redense_variant")
    base, pattern = prunes[0]["pruner"], prunes[0]["pattern"]
    name = BASES.get(base, base)
    if redense is None:
        if adjust is None:
            return Row(subject, base, pattern, name, "prune")
        if len(adjusts) > 1:
            times = {2: "twice", 3: "three times"}.get(len(adjusts), f"{len(adjusts)} times")
            return Row(subject, base, pattern, f"{name} + refit {times}", f"refit_{len(adjusts)}")
        kind = "iht" if adjust["steps"] else "refit"
        return Row(subject, base, pattern, f"{name} + {'IHT' if kind == 'iht' else 'refit'}", kind)
    marks = []
    if redense["start"] == "dense":
        marks.append(_FROM_DENSE)
    # Started dense, the inputs of the pruned model are neither the start's nor the dense model's.
    if redense["inputs"] != ("other" if redense["start"] == "dense" else "sparse"):
        kinds = {"dense": "DD inputs", "distilled": "KD inputs"}
        marks.append(kinds.get(redense["inputs"], f"{redense['inputs']} inputs"))
    if not redense["l1_weight"] and not redense["l2_weight"]:
        marks.append("no L1/L2")
    if adjust is not None and not adjust["refit_steps"]:
        marks.append(f"{adjust['steps']} soft-mask steps in {adjust['space']} space only")
    suffix = f", {', '.join(marks)}" if marks else ""
    dense_again = len(prunes) < (2 if redense["start"] == "sparse" else 1)
    if dense_again:
        kind, title = "redense", f"{name}, re-dense only (D{suffix})"
    elif adjust is None:
        kind, title = "early_exit", f"SDS early exit ({name}{suffix})"
    else:
        kind, title = "sds", f"SDS ({name}{suffix})"
    if (kind, marks) == ("sds", [_FROM_DENSE]):
        kind = "s_ds"
    elif marks:
        kind += "_variant"
    return Row(subject, base, pattern, title, kind)


def _order(row: Row) -> tuple[int, int, int, str]:
    variants = ("", "prune", *CONTROLS, "redense", "early_exit", "sds", "s_ds")
    base = place(row.base, "dense", *BASES)
    return place(row.variant, *variants), base, place(row.pattern, "", *PATTERNS), row.method
