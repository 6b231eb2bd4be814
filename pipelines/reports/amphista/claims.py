"""What the paper claims of Amphista, what we ask beside it, and what the scores say."""

from __future__ import annotations

from effllm.pipelines.reports.amphista.scores import AMPHISTA, MEDUSA, TOKEN, Study
from effllm.pipelines.reports.page import Verdict
from effllm.pipelines.reports.verdicts import differing, judge
from effllm.pipelines.reports.words import show

_FIRST_RIGHT = 0.45  # of the guesses of head 1; a goal of ours
_PAPER_RUN = {
    "target": ("Vicuna-7B", "Vicuna-13B", "Vicuna-33B"),
    "judged by": "wall clock on MT-Bench",
}


def answer(study: Study) -> str:
    """The answer in numbers; a control that wins stands in the first sentence."""
    nodes = middle(study)
    taus = {arm: study.tau(arm, nodes).value for arm in study.arms}
    best = max(taus, key=lambda arm: taus[arm])
    if AMPHISTA not in study.arms or MEDUSA not in study.arms:
        return ""
    others = [AMPHISTA, *(arm for arm in (study.matched, MEDUSA) if arm in study.arms)]
    named = [best, *(arm for arm in others if arm != best)]
    figures = ", ".join(f"{arm} {show(study.tau(arm, nodes), '.2f')}" for arm in named)
    parts = ", ".join(
        f"{show(study.gain(AMPHISTA, arm, nodes), '+.3f')} over {arm}"
        for arm in study.arms
        if arm.startswith(f"{AMPHISTA} without") or arm == TOKEN
    )
    best_one = (
        "Amphista has most of all arms." if best == AMPHISTA else f"{best} has most of all arms."
    )
    return (
        f"With trees of {nodes} nodes, tokens per pass are: {figures}. {best_one} What "
        f"the parts bring: Amphista gets {parts}."
    )


def conditions(target: str) -> tuple[str, ...]:
    """What differs from the paper's conditions."""
    return differing({"target": target, "judged by": "tau on our texts"}, _PAPER_RUN)


def verdicts(study: Study, target: str) -> dict[str, list[Verdict]]:
    """One per claim and size of tree; claims about arms that did not run are left out."""
    nodes, matched = middle(study), str(study.matched)
    found = {
        "Amphista against Medusa": [
            verdict
            for count in study.nodes
            for verdict in _more(
                study, AMPHISTA, MEDUSA, count, "Amphista gets more tokens per pass than Medusa",
                conditions(target),
            )
        ],
        "Amphista against a Medusa as large": [
            verdict
            for count in study.nodes
            for verdict in _more(
                study, AMPHISTA, matched, count,
                f"Amphista gets more than a Medusa as large as it ({matched})",
            )
        ],
        "Parts of Amphista": [
            verdict
            for arm, other, claim in (
                (AMPHISTA, f"{AMPHISTA} without encoder", "Heads that see each other get more"),
                (AMPHISTA, f"{AMPHISTA} without chosen token",
                 "Reading the chosen token brings more"),
                (AMPHISTA, f"{AMPHISTA} without staged layers", "Staged layers bring more"),
                (AMPHISTA, TOKEN, "Amphista gets more than Medusa with the chosen token"),
                (f"{AMPHISTA} without chosen token", matched,
                 "Causal layers without the token bring more than a Medusa as large"),
                (TOKEN, MEDUSA, "The chosen token alone helps Medusa"),
            )
            for verdict in _more(study, arm, other, nodes, claim)
        ],
    }  # fmt: skip
    if AMPHISTA in study.arms:
        right = study.right(AMPHISTA, 1)
        claim = f"Head 1 of Amphista is right at least {100 * _FIRST_RIGHT:.0f} % of the time"
        found["A goal of ours"] = [
            judge(f"{claim} (a goal of ours).", right, f"{show(right, '.1%')} %.",
                  above=_FIRST_RIGHT)
        ]  # fmt: skip
    return found


def _more(
    study: Study, arm: str, other: str, nodes: int, claim: str, paper: tuple[str, ...] = ()
) -> list[Verdict]:
    """Whether an arm has more tokens per pass; `paper`: conditions that differ in its claims."""
    if not {arm, other} <= study.arms.keys():
        return []
    gain = study.gain(arm, other, nodes)
    seeds = len(study.seeds(arm, other))
    margin = 0.0 if seeds > 1 else study.seed_margin(nodes)
    evidence = f"{show(gain, '+.3f')} tokens per pass, {seeds} seed{'s' * (seeds > 1)}"
    if margin:
        evidence += f"; must clear {margin:.3f}, twice the spread over seeds"
    return [
        judge(
            f"{claim}, {nodes} nodes each.",
            gain,
            f"{evidence}.",
            above=0,
            margin=margin,
            paper=bool(paper),
            conditions=paper,
        )
    ]


def middle(study: Study) -> int:
    """The tree that sentences speak of: 16 nodes, or the middle of those there are."""
    return 16 if 16 in study.nodes else study.nodes[len(study.nodes) // 2]
