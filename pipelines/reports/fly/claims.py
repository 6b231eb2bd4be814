"""What the paper claims of FLy, what we ask beside it, and what the benchmark says."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from effllm.modules.evaluation.intervals import share
from effllm.pipelines.reports.decoders.bench import Bench
from effllm.pipelines.reports.decoders.naming import Arm
from effllm.pipelines.reports.page import Verdict
from effllm.pipelines.reports.verdicts import decide, differing, judge, short_name
from effllm.pipelines.reports.words import show

_NLL_BOUND = 0.05  # nats per token that FLy's text may be less likely; ours
_LOST = 0.01  # of the target's right answers; the paper keeps more than 99 %
_PAPER_ARM = {
    "drafter": "a model of 8.03B with lookup inside",
    "W": 6,
    "K": (15, 25),
    "gate": "0.3 nats",
}
_PAPER_RUN = {
    "target": ("Llama-3.1-70B-Instruct", "Llama-3.1-405B-Instruct"),
    "prompts": ("gsm8k", "humaneval", "mbpp", "mgsm"),
}


def run_conditions(target: str, prompts: str) -> tuple[str, ...]:
    """Target and prompts of a run that are not the paper's."""
    return differing({"target": short_name(target), "prompts": prompts}, _PAPER_RUN)


def conditions(bench: Bench, about: Arm) -> tuple[str, ...]:
    """What differs from the paper's conditions when an arm's rule is judged."""
    rule, draft = about.verifier, about.about["draft"]
    drafter = "prompt lookup alone"
    if draft is not None:
        size = draft["parameters"]
        drafter = (
            f"a model of {size / 1e9:.3g}B" if size >= 1e9 else f"a model of {size / 1e6:.3g}M"
        )
        if draft["of_layers"]:
            drafter = f"first {draft['layers']} of the target's {draft['of_layers']} layers"
        drafter += " with lookup inside" * about.about["proposer"]["lookup"]
    gate = f"{rule['threshold']:g} {'nats' if rule['measure'] == 'top' else 'of ln V'}"
    ours = {"drafter": drafter, "W": rule["window"], "K": about.tokens, "gate": gate}
    return (*differing(ours, _PAPER_ARM), *bench.conditions)


def verdicts(bench: Bench) -> dict[str, list[Verdict]]:
    """One per claim, from paired differences."""
    ours: list[Verdict] = []
    exact: list[Verdict] = []
    fly: list[Verdict] = []
    quality: list[Verdict] = []
    parts: list[Verdict] = []
    for arm, about in bench.about.items():
        for own in _partners(bench, about, _is_own_version):
            ratio = bench.speed_ratio(own.key, arm)
            claim = f"Our loop decodes faster than {about.title}."
            ours.append(judge(claim, ratio, f"Speed ratio {show(ratio, '.2f')}.", above=1))
        if about.speculates and about.lossless:
            ratio = bench.speed_ratio(arm, "plain")
            claim = f"Exact decoding beats plain decoding in speed ({about.drafter})."
            exact.append(judge(claim, ratio, f"Speed ratio {show(ratio, '.2f')}.", above=1))
        if not about.is_fly:
            continue
        differs = conditions(bench, about)
        for partner in _partners(bench, about, _is_exact):
            for claim, measure, ratio in (
                (
                    "emits more tokens per pass than exact verification",
                    "Ratio of tau",
                    bench.ratio_over(arm, partner.key, "emitted", "rounds"),
                ),
                (
                    "decodes faster than exact verification",
                    "Speed ratio",
                    bench.speed_ratio(arm, partner.key),
                ),
            ):
                fly.append(
                    judge(
                        f"{about.rule} {claim} ({about.drafter}).",
                        ratio,
                        f"{measure} {show(ratio, '.2f')}.",
                        above=1,
                        paper=True,
                        conditions=differs,
                    )
                )
        quality += [_quality(bench, about), *answers_kept(bench, about)]
        parts += [
            _ablation(bench, without, about)
            for without in bench.about.values()
            if _is_ablation(without, about)
        ]
    return {
        "FLy against exact verification": fly,
        "What FLy does to the text": quality,
        "Parts of FLy": parts,
        "Exact drafts against plain decoding": exact,
        "Our decoding against transformers'": ours,
    }


def answer(bench: Bench) -> str:
    """What FLy's fastest arm brings over plain and exact decoding, and what it gives up."""
    arms = [arm for arm, about in bench.about.items() if about.is_fly]
    if not arms:
        return ""
    best = max(arms, key=lambda arm: bench.speed_ratio(arm, "plain").value)
    about = bench.about[best]
    ratio = show(bench.speed_ratio(best, "plain"), ".2f")
    said = f"{about.title} decodes {ratio} times as fast as plain decoding"
    for partner in _partners(bench, about, _is_exact):
        said += f", {show(bench.speed_ratio(best, partner.key), '.2f')} times the same drafts exact"
    change = show(bench.change(best, "plain", "nll"), "+.3f")
    return f"{said}. Its text is {change} nats per token less likely under the target."


def _partners(bench: Bench, about: Arm, wanted: Callable[[Arm, Arm], bool]) -> Iterator[Arm]:
    """The first arm that stands in a relation to another; nothing if there is none."""
    yield from [other for other in bench.about.values() if wanted(other, about)][:1]


def _is_ablation(one: Arm, other: Arm) -> bool:
    """Whether an arm lacks FLy's window or its gate, and nothing else is different."""
    if one.verifier.get("class") != "Fly" or one.is_fly or not one.same_drafts(other):
        return False
    settings = one.verifier.keys() | other.verifier.keys()
    return sum(one.verifier.get(key) != other.verifier.get(key) for key in settings) == 1


def _is_exact(one: Arm, other: Arm) -> bool:
    return one.speculates and one.lossless and one.same_drafts(other)


def _is_own_version(one: Arm, library: Arm) -> bool:
    """Whether an arm of ours does what an arm of transformers does."""
    if one.about["library"] or not one.lossless:
        return False
    kind = library.about["library"]
    if kind == "plain":
        return not one.speculates
    if not one.drafts_chain or one.tokens != library.tokens:
        return False
    mine, theirs = one.about["draft"], library.about["draft"]
    if mine is None or theirs is None:
        return kind == "lookup" and mine is theirs
    same = all(mine[key] == theirs[key] for key in ("layers", "of_layers"))
    return kind == "assisted" and same  # transformers' has the whole head, so it is larger


def _quality(bench: Bench, about: Arm) -> Verdict:
    change = bench.change(about.key, "plain", "nll")
    return judge(
        f"{about.rule} keeps the target's quality ({about.drafter}): its text is at most "
        f"{_NLL_BOUND} nats per token less likely under the target than the target's own "
        "(bound ours).",
        change,
        f"Change of target NLL {show(change, '+.3f')}.",
        below=_NLL_BOUND,
    )


def answers_kept(bench: Bench, about: Arm) -> list[Verdict]:
    """The share of the target's right answers that FLy keeps; none without checkable prompts.

    What counts is how many right answers there were to lose, not how many prompts: none lost of 60
    leaves up to 4.9 %.
    """
    checked = bench.checkable()
    if not checked.arms["plain"]:
        return []
    right, mine = (checked.values(arm, "correct")[:, 0] > 0 for arm in ("plain", about.key))
    lost = share(int(np.sum(right & ~mine)), int(right.sum()))
    change = checked.change(about.key, "plain", "correct")
    claim = f"{about.rule} keeps more than 99 % of the target's right answers ({about.drafter})."
    evidence = (
        f"Right answers {mine.sum()} against {right.sum()} of {len(right)}; change "
        f"{show(change, '+.1%')} points. Lost {np.sum(right & ~mine)} of the "
        f"{right.sum()}"
    )
    if not lost.known:
        return [judge(claim, lost, f"{evidence}.")]
    return [
        decide(
            claim,
            f"{evidence}: {100 * lost.low:.1f} to {100 * lost.high:.1f} % (exact one-sided 95 % "
            "bounds).",
            holds=lost.high < _LOST,
            # Answers that were won count, too, before the paper is said to be wrong.
            fails=lost.low > _LOST and change.high < -_LOST * right.mean(),
            paper=True,
            conditions=conditions(bench, about),
        )
    ]


def _ablation(bench: Bench, without: Arm, about: Arm) -> Verdict:
    """A part of FLy pays if leaving it out keeps more and makes the text less likely."""
    part = "window" if not without.verifier["window"] else "gate"
    longer = bench.ratio_over(without.key, about.key, "emitted", "rounds")
    worse = bench.change(without.key, about.key, "nll")
    claim = (
        f"{about.rule}, without the {part}: more is kept and the text gets worse ({about.drafter})."
    )
    evidence = f"Ratio of tau {show(longer, '.2f')}, change of target NLL {show(worse, '+.3f')}."
    if not longer.known:
        return judge(claim, longer, evidence)
    return decide(
        claim,
        evidence,
        holds=longer.low > 1 and worse.low > 0,
        fails=longer.high < 1 or worse.high < 0,
        paper=True,
        conditions=conditions(bench, about),
    )
