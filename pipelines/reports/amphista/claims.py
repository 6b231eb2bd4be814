"""What the paper claims of Amphista, what we ask beside it, and what the scores say."""

from __future__ import annotations

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.reports.amphista.scores import AMPHISTA, MEDUSA, TOKEN, Study
from effllm.pipelines.reports.decoding import interval
from effllm.pipelines.reports.page import Verdict
from effllm.pipelines.reports.verdicts import differing, judge

_FIRST_RIGHT = 0.45  # of the guesses of head 1; a goal of ours
_PAPER_RUN = {
    "target": ("Vicuna-7B", "Vicuna-13B", "Vicuna-33B"),
    "judged by": "wall clock on MT-Bench",
}


def answer(study: Study) -> str:
    """The question and its answer in numbers; a control that wins stands in the first sentence."""
    nodes = middle(study)
    taus = {arm: study.tau(arm, nodes).value for arm in study.arms}
    best = max(taus, key=lambda arm: taus[arm])
    question = "Do heads that see each other get more tokens per pass out of the same data?"
    if AMPHISTA not in study.arms or MEDUSA not in study.arms:
        return f"{question} Amphista or Medusa did not run."
    others = [AMPHISTA, *(arm for arm in (study.matched, MEDUSA) if arm in study.arms)]
    named = [best, *(arm for arm in others if arm != best)]
    figures = ", ".join(f"{arm} {interval(study.tau(arm, nodes), 2)}" for arm in named)
    parts = ", ".join(
        f"{interval(study.gain(AMPHISTA, arm, nodes), 3, sign=True)} over {arm}"
        for arm in study.arms
        if arm.startswith(f"{AMPHISTA} without") or arm == TOKEN
    )
    best_one = (
        "Amphista has most of all arms." if best == AMPHISTA else f"{best} has most of all arms."
    )
    return (
        f"{question} With trees of {nodes} nodes, tokens per pass are: {figures}. {best_one} What "
        f"the parts bring: Amphista gets {parts}."
    )


def verdicts(study: Study, target: str) -> list[Verdict]:
    """One per claim and size of tree; claims about arms that did not run are left out."""
    conditions = differing({"target": target, "judged by": "tau on our texts"}, _PAPER_RUN)
    found = []
    for nodes in study.nodes:
        found += _more(
            study,
            AMPHISTA,
            MEDUSA,
            nodes,
            f"Amphista gets more tokens per pass than Medusa, {nodes} nodes each.",
            paper=True,
            conditions=conditions,
        )
    for nodes in study.nodes if study.matched else ():
        found += _more(
            study,
            AMPHISTA,
            str(study.matched),
            nodes,
            f"Amphista gets more than a Medusa as large as it ({study.matched}), {nodes} nodes "
            "each.",
        )
    nodes = middle(study)
    for arm, other, claim in (
        (AMPHISTA, f"{AMPHISTA} without encoder", "Heads that see each other get more"),
        (AMPHISTA, f"{AMPHISTA} without chosen token", "Reading the chosen token brings more"),
        (AMPHISTA, f"{AMPHISTA} without staged layers", "Staged layers bring more"),
        (AMPHISTA, TOKEN, "Amphista gets more than Medusa with the chosen token"),
        (
            f"{AMPHISTA} without chosen token",
            str(study.matched),
            "Causal layers without the token bring more than a Medusa as large",
        ),
        (TOKEN, MEDUSA, "The chosen token alone helps Medusa"),
    ):
        found += _more(study, arm, other, nodes, f"{claim}, {nodes} nodes each.")
    if AMPHISTA in study.arms:
        right = study.right(AMPHISTA, 1)
        found.append(
            judge(
                f"Head 1 of Amphista is right at least {100 * _FIRST_RIGHT:.0f} % of the time (a "
                "goal of ours).",
                _FIRST_RIGHT - right,
                f"{interval(right, 1, scale=100)} %.",
            )
        )
    return found


def _more(
    study: Study,
    arm: str,
    other: str,
    nodes: int,
    claim: str,
    *,
    paper: bool = False,
    conditions: tuple[str, ...] = (),
) -> list[Verdict]:
    if not {arm, other} <= study.arms.keys():
        return []
    gain = study.gain(arm, other, nodes)
    seeds = len(study.seeds(arm, other))
    margin = 0.0 if seeds > 1 else study.seed_margin(nodes)
    evidence = f"{interval(gain, 3, sign=True)} tokens per pass, {seeds} seed{'s' * (seeds > 1)}"
    if margin:
        evidence += f"; must clear {margin:.3f}, twice the spread over seeds"
    less: Interval = 0 - gain
    return [judge(claim, less, f"{evidence}.", margin=margin, paper=paper, conditions=conditions)]


def middle(study: Study) -> int:
    """The tree that sentences speak of: 16 nodes, or the middle of those there are."""
    return 16 if 16 in study.nodes else study.nodes[len(study.nodes) // 2]
