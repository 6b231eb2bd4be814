"""What a model of this paper is called, by how its order of channels was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from effllm.pipelines.reports.models.comparison import Row, place
from effllm.pipelines.reports.models.subjects import Subject

PRUNERS = {"magnitude": "Magnitude", "wanda": "Wanda", "ria": "RIA score", "sparsegpt": "SparseGPT"}
SEARCHES = {
    "unchanged": "no new order",
    "random": "best of random orders",
    "deal": "deal",
    "ria": "RIA",
    "ria_repeated": "RIA, repeated",
    "pairs": "pairs of groups (apex)",
    "swaps": "swaps on score",
    "loss_swaps": "swaps on error",
    "perturbed": "swaps on error, pushed on",
    "by_error": "chosen among searched by the layers' error",
    "at_random": "chosen among searched at random, best on held-out text",
}
LEARNT = {
    "paper": "learned, the paper's way",
    "permllm": "learned, PermLLM's way",
    "learned": "learned from swaps, by layer (ours)",
    "jointly": "learned from swaps, jointly (ours)",
    "chosen": "chosen among searched, learned (ours)",
}


def describe_all(subjects: Iterable[Subject]) -> list[Row]:
    """Rows in their order: dense, then per pruner by level and search."""
    return sorted(map(describe, subjects), key=_order)


def describe(subject: Subject) -> Row:
    """Name a model by its history."""
    history = subject.history
    if not history:
        return Row(subject, "dense", "", "Dense")
    prune = next(step for step in history if step["stage"] == "prune")
    base, pattern = prune["pruner"], prune["pattern"]
    folded = next((step for step in history if step["stage"] == "fold_permutation"), None)
    about = (folded or prune).get("permutation")
    kind = kind_of(about) if about else "unchanged"
    level = about["level"] if about else "gather"
    variant = kind if kind == "unchanged" else f"{level}/{kind}"
    title = PRUNERS.get(base, base)
    if about is None and base != "sparsegpt":
        return Row(subject, base, pattern, f"{title}, inputs measured again", "sequential")
    if about and kind != "unchanged":
        title += f", {(SEARCHES | LEARNT)[kind]}"
    if level == "free":
        title += ", free"
    if folded:
        variant, title = f"folded/{kind}", title.removesuffix(", free") + ", folded in"
    return Row(subject, base, pattern, title, variant)


def kind_of(about: Mapping[str, Any]) -> str:
    """The search, improvement or way of learning that a permutation ended with."""
    last = about["found"][-1]
    if last["kind"] == "Choice":
        return {"learned": "chosen", "error": "by_error", "random": "at_random"}[last["rule"]]
    if last["kind"] == "Learning":
        if last["objective"] == "layer":
            return "learned"
        if len(about["found"]) > 2:
            return "jointly"
        return {"next_token": "paper", "hidden_state": "permllm"}[last["objective"]]
    if last["kind"] == "RelativeImportance":
        return "ria" if last["rounds"] == 1 else "ria_repeated"
    return {
        "Unchanged": "unchanged",
        "BestOfRandom": "random",
        "Deal": "deal",
        "Swaps": "swaps",
        "PairSearch": "pairs",
        "LossSwaps": "loss_swaps",
        "Perturbed": "perturbed",
    }[last["kind"]]


def _order(row: Row) -> tuple[int, int, int]:
    level, _, kind = row.variant.rpartition("/")
    found = place(kind, "", "sequential", *SEARCHES, *LEARNT)
    return place(row.base, "dense", *PRUNERS), place(level, "", "gather", "free", "folded"), found
