"""Whether the search's gain holds for other calibration windows and other moves."""

from __future__ import annotations

from dataclasses import replace

from effllm.pipelines.reports.comparison import Comparison, signed
from effllm.pipelines.reports.page import Verdict
from effllm.pipelines.reports.seeds import seed_differences
from effllm.pipelines.reports.tyr import (
    ABLATED,
    EVEN,
    SECOND,
    VARIANT,
    conditions,
    sparsities,
)
from effllm.pipelines.reports.verdicts import judge


def verdicts(data: Comparison) -> list[Verdict]:
    """The searched model against its nearest rival and its own even level; intervals over seeds."""
    found = []
    for sparsity in sparsities(data):
        mine = at(data, sparsity)
        for base, name in {"second": SECOND, "even": EVEN}.items():
            kinds = ("searched", VARIANT), (base, VARIANT)
            change, each = seed_differences(mine, *kinds)
            heldout, each_heldout = seed_differences(mine, *kinds, "heldout")
            if change is None or heldout is None:
                continue
            evidence = (
                f"Test perplexity {signed(change)} %, each: {_list(each)}; held-out "
                f"{signed(heldout)} %, each: {_list(each_heldout)}. Student's t intervals over "
                f"{len(each)} seeds."
            )
            claim = f"At {sparsity} the searched model beats {name} in test perplexity."
            paper = base == "second" or sparsity == ABLATED
            row = mine.find("searched", VARIANT, sparsity)
            assert row is not None
            differs = conditions(mine, row)
            found.append(judge(claim, change, evidence, paper=paper, conditions=differs))
    return found


def at(data: Comparison, sparsity: str) -> Comparison:
    """The rows of one sparsity."""
    return replace(data, rows=[row for row in data.rows if row.pattern == sparsity])


def _list(changes: list[float]) -> str:
    return ", ".join(f"{one:+.1f}" for one in changes)
