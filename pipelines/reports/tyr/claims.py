"""What the paper claims of Týr, what we ask beside it, and what the figures say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from effllm.pipelines.reports.models.comparison import Comparison, Row
from effllm.pipelines.reports.models.seeds import seed_differences
from effllm.pipelines.reports.page import Verdict
from effllm.pipelines.reports.tyr.names import BASELINES, EVEN, SECOND, sparsities
from effllm.pipelines.reports.tyr.speed import Speedup
from effllm.pipelines.reports.verdicts import differing, judge
from effllm.pipelines.reports.words import number, show

_IN_PAPER = ("wanda", "flap", "shortgpt", "second")  # its table 1, at four sparsities
_ABLATED = "50 %"  # what the paper's tables 4 and 6 take apart
# Another draw of calibration windows and moves changes a paired difference too: over three seeds at
# cpu scale by a pooled standard deviation of 0.9 points (docs/papers/tyr.md). With one seed, the
# interval over documents must therefore clear twice that, rounded up, to count.
SEED_MARGIN = 2.0
PAPER_RUN = {
    "model": ("Llama-3.1-8B", "Llama-3.1-70B"),
    "calibration": "fineweb-edu, 1024 x 4096",
    "test text": "wikitext, windows of 4096",
}
_PAPER_SEARCH = {"guided generations": 0, "rounds": 4}
# What a small machine should gain at half the units; ours.
_DECODE_GOAL, _PREFILL_GOAL = 1.35, 1.5
JUDGED = (
    "One calibration and search seed: another draw moves the figures, so a difference in "
    f"perplexity counts only where its interval clears {SEED_MARGIN:g} %. Searches judge on the "
    "text that all methods prune on, never on the held-out or test text. Intervals of speeds are "
    "over rounds of timing. The paper has no such figures at some of the sparsities."
)


def conditions(data: Comparison, row: Row) -> tuple[str, ...]:
    """What differs from the paper's conditions where a model is judged."""
    step = row.subject.history[-1]
    if not step.get("searched"):
        return data.conditions
    ours = {"guided generations": step["guided"], "rounds": step["iteration"]}
    return (*differing(ours, _PAPER_SEARCH), *data.conditions)


def verdicts(data: Comparison, speeds: Sequence[Speedup]) -> dict[str, list[Verdict]]:
    """One verdict per claim, from paired differences on test text."""
    others: list[Verdict] = []
    rounds: list[Verdict] = []
    for sparsity in sparsities(data):
        best = data.find("searched", pattern=sparsity)
        if best is None:
            continue
        for base in (*BASELINES, "second", "local", "even"):
            other = data.find(base, pattern=sparsity)
            if other is not None:
                others.append(
                    _against(
                        data,
                        best,
                        other,
                        f"At {sparsity} the searched model beats {other.method} in test "
                        "perplexity.",
                        f" Parameters {_millions(best)} against {_millions(other)}.",
                        paper=base in _IN_PAPER or (base == "even" and sparsity == _ABLATED),
                    )
                )
        later = data.find("searched_2", pattern=sparsity)
        if later is not None:
            claim = f"At {sparsity} a second, finer round of pruning and search helps."
            # In the paper its perplexity rises; only its accuracy gains.
            rounds.append(_against(data, later, best, claim, paper=False))
    return {
        "The search against other methods": others,
        "Rounds": rounds,
        "Speed": [
            verdict
            for speedup in speeds
            if speedup.row.base == "searched"
            for verdict in _speed_verdicts(data, speedup)
        ],
        "Parts of the method": _part_verdicts(data),
    }


def answer(data: Comparison, speeds: Sequence[Speedup]) -> str:
    """What the search gains at the highest sparsity that was searched, and what it buys."""
    searched = [row for row in data.rows if row.base == "searched"]
    if not searched:
        return ""
    best = searched[-1]
    others = {
        base: data.find(base, pattern=best.pattern)
        for base in (*BASELINES, "second", "local", "even")
    }
    rivals = {base: row for base, row in others.items() if row is not None}
    said = (
        f"With {best.pattern} of heads and neurons removed, the searched model has a test "
        f"perplexity of {show(data.perplexity(best).value)} (dense "
        f"{show(data.perplexity(data.dense).value)})"
    )
    nearest = min(rivals.values(), key=lambda row: data.perplexity(row).value, default=None)
    if nearest is not None:
        change = show(data.relative(best, nearest), "+")
        said += f", {change} % against the best without a search, {nearest.method}"
    found = next((one for one in speeds if one.row is best), None)
    if found is None:
        return f"{said}."
    return (
        f"{said}. It decodes {show(found.decode, '.2f')} times and reads prompts "
        f"{show(found.prefill, '.2f')} times as fast as the dense model."
    )


def seeds_verdicts(data: Comparison) -> dict[str, list[Verdict]]:
    """The searched model against its nearest rival and its own even level; intervals over seeds."""
    found = []
    for sparsity in sparsities(data):
        mine = at(data, sparsity)
        row = mine.find("searched", pattern=sparsity)
        for base, name in {"second": SECOND, "even": EVEN}.items():
            kinds = ("searched", ""), (base, "")
            change, each = seed_differences(mine, *kinds)
            heldout, each_heldout = seed_differences(mine, *kinds, "heldout")
            if change is None or heldout is None or row is None:
                continue
            found.append(
                judge(
                    f"At {sparsity} the searched model beats {name} in test perplexity.",
                    change,
                    f"Test perplexity {show(change, '+')} %, each: {_list(each)}; held-out "
                    f"{show(heldout, '+')} %, each: {_list(each_heldout)}. Student's t "
                    f"intervals over {len(each)} seeds.",
                    below=0,
                    paper=base == "second" or sparsity == _ABLATED,
                    conditions=conditions(mine, row),
                )
            )
    return {"The search over seeds": found}


def seeds_answer(data: Comparison) -> str:
    """What the search gains on its nearest rival at each sparsity."""
    said = []
    for sparsity in sparsities(data):
        change, each = seed_differences(at(data, sparsity), ("searched", ""), ("second", ""))
        if change is not None:
            said.append(f"{show(change, '+')} % at {sparsity}, over {len(each)} seeds")
    gains = "; ".join(said)
    return f"Test perplexity of the searched model against {SECOND}: {gains}." if said else ""


def at(data: Comparison, sparsity: str) -> Comparison:
    """The rows of one sparsity."""
    return replace(data, rows=[row for row in data.rows if row.pattern == sparsity])


def _list(changes: list[float]) -> str:
    return ", ".join(f"{change:+.1f}" for change in changes)


def _against(
    data: Comparison, row: Row, other: Row, claim: str, more: str = "", *, paper: bool
) -> Verdict:
    """One model against another on test text; held-out text stands beside it."""
    change, heldout = data.relative(row, other), data.relative(row, other, "heldout")
    return judge(
        claim,
        change,
        f"Test {show(change, '+')} %, held-out {show(heldout, '+')} % (paired).{more}",
        below=0,
        margin=SEED_MARGIN,
        paper=paper,
        conditions=conditions(data, row),
    )


def _part_verdicts(data: Comparison) -> list[Verdict]:
    """Whether each part of the method helps: the usual model against the one without the part."""
    found = []
    for row in data.rows:
        base = {"second": "local"}.get(row.base, row.base.removesuffix("_variant"))
        usual = data.find(base, pattern=row.pattern)
        if base == row.base or usual is None:
            continue
        claim = f"At {row.pattern} {usual.method} beats {row.method}."
        in_paper = row.base == "second" or "accumulation" in row.method
        found.append(_against(data, usual, row, claim, paper=row.pattern == _ABLATED and in_paper))
    return found


def _millions(row: Row) -> str:
    sizes = row.subject.sizes
    return f"{number(sizes['parameters'] / 1e6)} M" if sizes else "not counted"


def _speed_verdicts(data: Comparison, speedup: Speedup) -> list[Verdict]:
    found = []
    for name, ratio, goal, paper in (
        ("decodes", speedup.decode, _DECODE_GOAL, {"25 %": 1.15, "50 %": 1.38}),
        ("reads a prompt", speedup.prefill, _PREFILL_GOAL, {"25 %": 1.28, "50 %": 1.75}),
    ):
        sparsity = speedup.row.pattern
        theirs = f"; the paper has {paper[sparsity]:.2f}x (8B, MI250)" if sparsity in paper else ""
        evidence = f"{show(ratio, '.2f')} the dense model's speed{theirs}."
        found.append(
            judge(
                f"At {sparsity} the searched model {name} faster than the dense one.",
                ratio,
                evidence,
                above=1,
                paper=sparsity in paper,
                conditions=conditions(data, speedup.row),
            )
        )
        if sparsity == "50 %":
            claim = f"At {sparsity} it {name} at least {goal:g} times as fast."
            found.append(judge(claim, ratio, evidence, above=goal))
    return found
