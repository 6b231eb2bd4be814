"""What the numbers say of each claim; the rule for "surpasses the target" is stated once, here.

On the untouched test problems, at the threshold that validation chose, three lower 95 % bounds must
be above 0: of the gain over the target, of that over random choices at the same rate, and of that
over self-arbitration.
"""

from __future__ import annotations

from collections.abc import Sequence

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.reports.cospec.study import TITLES, Study
from effllm.pipelines.reports.page import Verdict
from effllm.pipelines.reports.verdicts import decide, judge
from effllm.pipelines.reports.words import show

_MATCHES = 0.01  # a gain within one point either way
PAPER_CONDITIONS = (
    "models made here, paper Llama 70B with 8B (second-hand)",
    "tasks made here, paper GSM8K, HumanEval and MBPP (second-hand)",
    "policy and training designed here",
)


def verdicts(studies: Sequence[Study]) -> dict[str, list[Verdict]]:
    """All claims, pair by pair."""
    planted = [study for study in studies if study.pair["best_accuracy"] is not None]
    return {
        "Arbitration against the target": [surpasses(study) for study in studies],
        "Arbitration against the best there can be": [_near_optimum(study) for study in planted],
        "Arbitration against rules of one number": [_beats_best_number(one) for one in studies],
        "What reinforcement adds": [_reinforcement_adds(study) for study in studies],
    }


def surpasses(study: Study) -> Verdict:
    """Whether the shipped policy is right more often than the target, by the rule above."""
    gain, random, own = (study.gain("cospec", over) for over in ("target", "random", "self_rl"))
    claim = f"{study.name}: arbitration is right more often than the target alone."
    evidence = (
        f"Over the target {_points(gain)}, over random choices {_points(random)}, over "
        f"self-arbitration {_points(own)}; predicted speed-up "
        f"{study.predicted_speed('cospec'):.2f}."
    )
    if not gain.known:
        return judge(claim, gain, evidence, above=0)
    if gain.low > -_MATCHES and gain.high < _MATCHES:
        return Verdict(claim, "matches", evidence, PAPER_CONDITIONS)
    return decide(
        claim,
        evidence,
        holds=min(gain.low, random.low, own.low) > 0,
        fails=gain.high < 0 or own.high < 0 or random.high < 0,
        paper=True,
        conditions=PAPER_CONDITIONS,
    )


def _near_optimum(study: Study) -> Verdict:
    best = study.pair["best_accuracy"]
    return judge(
        f"{study.name}: the shipped policy is within one point of the best there can be.",
        study.share("cospec"),
        f"Right {_percent(study.share('cospec'))} %, the optimum is expected at "
        f"{100 * best:.1f} %.",
        above=best - _MATCHES,
    )


def _beats_best_number(study: Study) -> Verdict:
    rule = study.best_one_number()
    gain = study.gain("cospec", rule)
    return judge(
        f"{study.name}: the policy beats the best rule of one number ({TITLES[rule]}).",
        gain,
        f"Over it {_points(gain)}.",
        above=0,
    )


def _reinforcement_adds(study: Study) -> Verdict:
    claim = f"{study.name}: reinforcement adds right answers to the warm start."
    if not study.figures["gate_open"]:
        return Verdict(claim, "no verdict", "The gate was closed; there was no reinforcement.")
    gain = study.gain("rl", "warm")
    return judge(claim, gain, f"Over the warm start {_points(gain)}.", above=0)


def _percent(value: Interval) -> str:
    return show(value, ".1%")


def _points(value: Interval) -> str:
    return f"{show(value, '+.1%')} points"


def answer(studies: Sequence[Study]) -> str:
    """The answer in a sentence per pair, with the controls that win."""
    parts = []
    for study in studies:
        best = study.best_one_number()
        ahead = [
            TITLES[rule]
            for rule in (best, "random", "self_rl", "warm")
            if study.gain(rule, "cospec").value > 0
        ]
        share = {rule: 100 * study.share(rule).value for rule in ("cospec", "target", best)}
        said = (
            f"On {study.name} arbitration is right in {share['cospec']:.1f} % of "
            f"{study.right['target'].shape[1]:,} test problems and the target alone in "
            f"{share['target']:.1f} % ({_points(study.gain('cospec'))}); the best rule of one "
            f"number ({TITLES[best]}) in {share[best]:.1f} %"
        )
        if ahead:
            said += f"; these controls are ahead of it: {', '.join(ahead)}"
        parts.append(f"{said}.")
    return " ".join(parts)


WHAT_IT_SHOWS = (
    "What small models can show, and what not: the pairs are made here, with problems that can be "
    "checked and skills that differ on purpose (fake: planted, with a known optimum; toy: two "
    "small models, each shown few examples of what the other is good at; toy_null: the target with "
    "noise in its weights, which knows nothing more). They show the mechanism: whether a policy "
    "beats its target where two models err differently and free features tell, and whether simpler "
    "rules do, too. They say nothing on whether a model of 8B knows better than one of 70B: the "
    "paper's benchmarks are out of reach of models of this size."
)
JUDGED = (
    "“Right more often than the target” is said only if three lower 95 % bounds on test problems "
    "are above 0: of the gain over the target, over random choices at the same rate, and over "
    "self-arbitration, where the same policy and training choose between the target's own first "
    "and second token."
)
