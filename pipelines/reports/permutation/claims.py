"""Verdicts on what the paper claims, and on the controls that it left out."""

from __future__ import annotations

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.comparison import Comparison, Row, signed
from effllm.pipelines.reports.page import Verdict
from effllm.pipelines.reports.permutation.tables import finding_time, found_by
from effllm.pipelines.reports.sds import SEED_MARGIN
from effllm.pipelines.reports.verdicts import judge

MAIN = "2:4"
PAPER_RUN = {
    "model": ("Llama-3.2-1B", "Llama-2-7b-hf"),
    "calibration": "C4 and Alpaca",
    "test text": "wikitext, windows of 4096",
}


def verdicts(data: Comparison, results: list[Artifact]) -> list[Verdict]:
    """One per claim whose models are there."""
    found: list[Verdict] = []

    def against(claim: str, kind: str, other: str, *, paper: bool, base: str = "wanda") -> None:
        row, control = data.find(base, kind, MAIN), data.find(base, other, MAIN)
        if row is None or control is None:
            return
        change = data.relative(row, control)
        evidence = (
            f"Test perplexity {signed(change)} % (paired by window){_times(row, control, results)}."
        )
        differs = (*conditions(row, results), *data.conditions) if paper else ()
        found.append(
            judge(claim, change, evidence, margin=SEED_MARGIN, paper=paper, conditions=differs)
        )

    against("An order learned the paper's way beats no order.", "gather/paper", "unchanged",
            paper=True)  # fmt: skip
    against("An order learned the paper's way beats RIA's one pass.", "gather/paper", "gather/ria",
            paper=True)  # fmt: skip
    against("A searched order (swaps on error) beats no order.", "gather/loss_swaps", "unchanged",
            paper=False)  # fmt: skip
    against("A searched order (swaps on error) beats RIA's one pass.", "gather/loss_swaps",
            "gather/ria", paper=False)  # fmt: skip
    against("An order learned the paper's way beats the search (swaps on error).", "gather/paper",
            "gather/loss_swaps", paper=False)  # fmt: skip
    against("An order learned PermLLM's way beats the search (swaps on error).", "gather/permllm",
            "gather/loss_swaps", paper=False)  # fmt: skip
    for kind, how in (("learned", "layer by layer"), ("jointly", "through the whole model")):
        for other, it in (("loss_swaps", "it"), ("perturbed", "a search pushed on")):
            against(f"Learning from the search's order, {how}, improves on {it}.",
                    f"gather/{kind}", f"gather/{other}", paper=False)  # fmt: skip
    against("Orders that cost nothing at run time (free) beat no order.", "free/loss_swaps",
            "unchanged", paper=False)  # fmt: skip
    against("Where weights may move, an order helps, too (SparseGPT).", "gather/loss_swaps",
            "unchanged", paper=False, base="sparsegpt")  # fmt: skip
    return found


def conditions(row: Row, results: list[Artifact]) -> tuple[str, ...]:
    """How the learning of a row differs from the paper's."""
    permutation = found_by(row, results)
    assert permutation is not None
    steps = permutation.about["found"][-1]["steps"]
    return (f"{steps} steps, paper 20 epochs of 806 MB of text",)


def answer(data: Comparison) -> str:
    """The question in one sentence of numbers; empty if its models are missing."""
    kinds = ("unchanged", "gather/ria", "gather/loss_swaps", "gather/jointly", "gather/paper")
    rows = {kind: data.find("wanda", kind, MAIN) for kind in kinds}
    shown = {kind: row for kind, row in rows.items() if row is not None}
    if len(shown) < len(rows):
        return ""
    value = {kind: data.perplexity(row).value for kind, row in shown.items()}
    change = data.relative(shown["gather/jointly"], shown["gather/loss_swaps"])
    lead = "Yes." if change.high < -SEED_MARGIN else "Not in the settings tried here."
    return (
        f"{lead} Wanda at {MAIN} has a test perplexity of {value['unchanged']:.1f} as channels "
        "are, "
        f"{value['gather/ria']:.1f} in RIA's order, {value['gather/loss_swaps']:.1f} after swaps "
        f"that lower the layers' error, {value['gather/jointly']:.1f} after learning on from "
        f"there ({signed(change)} %), and {value['gather/paper']:.1f} learned the paper's way in "
        "the steps given here."
    )


def _times(row: Row, other: Row, results: list[Artifact]) -> str:
    shown = []
    for one in (row, other):
        permutation = None if one.variant == "unchanged" else found_by(one, results)
        shown.append("no time" if permutation is None else finding_time(permutation, results))
    return f"; found in {shown[0]} against {shown[1]}"
