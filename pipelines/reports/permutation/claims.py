"""Verdicts on what the paper claims, and on the controls that it left out."""

from __future__ import annotations

from collections.abc import Iterable

from effllm.pipelines.reports.models.comparison import Comparison, Row
from effllm.pipelines.reports.page import Verdict
from effllm.pipelines.reports.permutation.names import LEARNT, SEARCHES
from effllm.pipelines.reports.permutation.tables import finding_time, found_by
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.sds.claims import SEED_MARGIN
from effllm.pipelines.reports.verdicts import judge
from effllm.pipelines.reports.words import show

MAIN = "2:4"
PAPER_RUN = {
    "model": ("Llama-3.2-1B", "Llama-2-7b-hf"),
    "calibration": "C4 and Alpaca",
    "test text": "wikitext, windows of 4096",
}


JUDGED = (
    "One calibration seed: a difference counts only where its interval clears "
    f"{SEED_MARGIN:g} %, which covers another calibration draw as measured for SDS. Scores are "
    "those of the dense model, measured once, as in the paper; “inputs measured again” is Wanda as "
    "its authors run it, on the inputs of the blocks that are pruned already, and so is SparseGPT."
)
_SEARCH = "gather/loss_swaps"
# Group of claims -> claim, variant, the variant that it is claimed to beat.
_CLAIMS = {
    "Orders against no order and against RIA's": (
        ("An order learned the paper's way beats no order.", "gather/paper", "unchanged"),
        ("An order learned the paper's way beats RIA's one pass.", "gather/paper", "gather/ria"),
        ("A searched order (swaps on error) beats no order.", _SEARCH, "unchanged"),
        ("A searched order (swaps on error) beats RIA's one pass.", _SEARCH, "gather/ria"),
        ("Orders that cost nothing at run time (free) beat no order.", "free/loss_swaps",
         "unchanged"),
    ),
    "Choosing among searched orders": (
        ("A learned choice among searched orders improves on swaps on score.", "gather/chosen",
         "gather/swaps"),
        ("It improves on RIA, repeated.", "gather/chosen", "gather/ria_repeated"),
        ("It improves on the choice by the layers' error.", "gather/chosen", "gather/by_error"),
        ("It improves on random choices, the best by held-out text.", "gather/chosen",
         "gather/at_random"),
    ),
    "Learned orders against searched ones": (
        ("An order learned the paper's way beats the search (swaps on error).", "gather/paper",
         _SEARCH),
        ("An order learned PermLLM's way beats the search (swaps on error).", "gather/permllm",
         _SEARCH),
        *(
            (f"Learning from the search's order, {how}, improves on {it}.", f"gather/{kind}",
             f"gather/{other}")
            for kind, how in (("learned", "layer by layer"), ("jointly", "through the whole model"))
            for other, it in (("loss_swaps", "it"), ("perturbed", "a search pushed on"))
        ),
        ("Learning through the model improves on the search among free orders, too.",
         "free/jointly", "free/loss_swaps"),
    ),
    "Where weights may move": (
        ("Where weights may move, an order helps, too (SparseGPT).", _SEARCH, "unchanged"),
        ("The order learned through the model helps SparseGPT more than the searched one.",
         "gather/jointly", _SEARCH),
    ),
}  # fmt: skip


def verdicts(data: Comparison, results: Results) -> dict[str, list[Verdict]]:
    """One per claim whose models are there."""
    found: dict[str, list[Verdict]] = {}
    for group, claims in _CLAIMS.items():
        for claim, kind, other in claims:
            base = "sparsegpt" if "SparseGPT" in claim else "wanda"
            row, control = data.find(base, kind, MAIN), data.find(base, other, MAIN)
            if row is None or control is None:
                continue
            change = data.relative(row, control)
            paper = kind == "gather/paper" and other != _SEARCH
            found.setdefault(group, []).append(
                judge(
                    claim,
                    change,
                    f"Test perplexity {show(change, '+')} % (paired by window)"
                    f"{_times(row, control, results)}.",
                    below=0,
                    margin=SEED_MARGIN,
                    paper=paper,
                    conditions=(*conditions(row, results), *data.conditions) if paper else (),
                )
            )
    return found


def conditions(row: Row, results: Results) -> tuple[str, ...]:
    """How the learning of a row differs from the paper's."""
    permutation = found_by(row, results)
    assert permutation is not None
    steps = permutation.about["found"][-1]["steps"]
    return (f"{steps} steps, paper 20 epochs of 806 MB of text",)


def answer(data: Comparison) -> str:
    """The question in one sentence of numbers; empty if its models are missing."""
    plain, searched, learned, paper = (
        data.find("wanda", "unchanged", MAIN),
        _best(data, SEARCHES),
        _best(data, LEARNT),
        data.find("wanda", "gather/paper", MAIN),
    )
    if plain is None or searched is None or learned is None or paper is None:
        return ""
    change = data.relative(learned, searched)
    lead = "Yes." if change.high < -SEED_MARGIN else "Not in the settings tried here."
    value = {row.method: data.perplexity(row).value for row in (plain, searched, learned, paper)}
    return (
        f"{lead} Wanda at {MAIN} has a test perplexity of {value[plain.method]:.1f} as channels "
        f"are, {value[searched.method]:.1f} with the best searched order (“{searched.method}”), "
        f"{value[learned.method]:.1f} with the best learned one (“{learned.method}”, "
        f"{show(change, '+')} %), and {value[paper.method]:.1f} learned the paper's way in the "
        "steps given here. The best are those of held-out text."
    )


def _best(data: Comparison, kinds: Iterable[str]) -> Row | None:
    """The gathered order with the lowest held-out perplexity."""
    found = [
        row
        for kind in kinds
        if kind != "unchanged" and (row := data.find("wanda", f"gather/{kind}", MAIN)) is not None
    ]
    return min(found, key=lambda row: data.perplexity(row, "heldout").value, default=None)


def _times(row: Row, other: Row, results: Results) -> str:
    shown = []
    for one in (row, other):
        permutation = None if one.variant == "unchanged" else found_by(one, results)
        shown.append("no time" if permutation is None else finding_time(permutation, results))
    return f"; found in {shown[0]} against {shown[1]}"
