"""A report on orders over calibration seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from effllm.pipelines.reports.models.comparison import Comparison
from effllm.pipelines.reports.models.seeds import seed_differences, seeds_table
from effllm.pipelines.reports.page import Verdict
from effllm.pipelines.reports.permutation.claims import MAIN, PAPER_RUN
from effllm.pipelines.reports.permutation.names import describe_all
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.stage import Findings, ReportStage
from effllm.pipelines.reports.verdicts import judge
from effllm.pipelines.reports.words import show

_PAIRS = {  # method and control -> the claim
    ("gather/ria", "unchanged"): "RIA's order improves on none.",
    ("gather/swaps", "gather/ria"): "Swaps on score improve on RIA's one pass.",
    ("gather/loss_swaps", "gather/swaps"): "Swaps on error improve on swaps on score.",
    ("gather/learned", "gather/loss_swaps"): "Learning by layer improves on its start.",
    ("gather/learned", "gather/swaps"): "Learning by layer improves on swaps on score.",
}


@dataclass(frozen=True, kw_only=True)
class ReportPermutationSeeds(ReportStage):
    """The nearest pairs of orders over several calibration seeds."""

    TITLE: ClassVar[str] = "Orders of channels: calibration seeds"
    QUESTION: ClassVar[str] = (
        "Do search, and learning after it, gain as much on other calibration texts?"
    )
    ARXIV: ClassVar[str] = "2601.22980"

    def find(self, results: Results, figures: Path) -> Findings:
        """Perplexity by seed, and the differences of the nearest pairs."""
        del figures
        data = Comparison.of(results, describe_all, PAPER_RUN, self.resamples)
        return Findings(
            subject=f"Wanda at {MAIN}; the same settings and test windows, each seed draws its own "
            "calibration windows",
            answer=answer(data),
            main=[seeds_table(data, data.rows)],
            rows=[data.result_row(row, "permutation_seeds", {}) for row in data.rows],
            verdicts={"Nearest pairs": verdicts(data)},
            conditions=data.conditions,
        )


def verdicts(data: Comparison) -> list[Verdict]:
    """One for each pair."""
    found = []
    for (method, control), claim in _PAIRS.items():
        change, each = seed_differences(data, ("wanda", method), ("wanda", control))
        if change is not None:
            evidence = (
                f"Test perplexity {show(change, '+')} %, Student's t interval over {len(each)} "
                f"calibration seeds; each: {', '.join(f'{one:+.1f}' for one in each)}."
            )
            found.append(judge(claim, change, evidence, below=0))
    return found


def answer(data: Comparison) -> str:
    """What the best search and learning change."""
    search, _ = seed_differences(data, ("wanda", "gather/swaps"), ("wanda", "unchanged"))
    learned, _ = seed_differences(data, ("wanda", "gather/learned"), ("wanda", "gather/swaps"))
    if search is None or learned is None:
        return ""
    return (
        f"Over calibration seeds, swaps on score change test perplexity by {show(search, '+')} % "
        f"from no new order, and learning by layer by {show(learned, '+')} % from there."
    )
