"""What the FLy report says: verdicts, the gate, acceptance, and the paper's figures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from effllm.modules.evaluation.intervals import Interval, share
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.arms import Arm
from effllm.pipelines.reports.decoding import Bench, interval
from effllm.pipelines.reports.figures import figure, write_csv
from effllm.pipelines.reports.page import Figure, Table, Verdict
from effllm.pipelines.reports.verdicts import decide, differing, judge, short_name

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


def verdicts(bench: Bench) -> list[Verdict]:
    """One per claim, from paired differences."""
    found = []
    for arm, about in bench.about.items():
        own = next((one for one in bench.about.values() if _is_own_version(one, about)), None)
        if own is not None:
            found.append(
                _above_one(
                    f"Our loop decodes faster than {about.title}.",
                    "Speed ratio",
                    bench.speed_ratio(own.key, arm),
                )
            )
    for arm, about in bench.about.items():
        if about.speculates and about.lossless:
            found.append(
                _above_one(
                    f"Exact decoding beats plain decoding in speed ({about.drafter}).",
                    "Speed ratio",
                    bench.speed_ratio(arm, "plain"),
                )
            )
    for arm, about in bench.about.items():
        if not about.is_fly:
            continue
        partner = next((one for one in bench.about.values() if _is_exact(one, about)), None)
        if partner is not None:
            longer = bench.per_over(arm, partner.key, "emitted", "rounds")
            found += [
                _above_one(
                    f"{about.rule} emits more tokens per pass than exact verification "
                    f"({about.drafter}).",
                    "Ratio of tau",
                    longer,
                    paper=True,
                    conditions=conditions(bench, about),
                ),
                _above_one(
                    f"{about.rule} decodes faster than exact verification ({about.drafter}).",
                    "Speed ratio",
                    bench.speed_ratio(arm, partner.key),
                    paper=True,
                    conditions=conditions(bench, about),
                ),
            ]
        found += [_quality(bench, about), *answers_kept(bench, about)]
        found += [
            _ablation(bench, one, about) for one in bench.about.values() if _is_ablation(one, about)
        ]
    return found


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
        change - _NLL_BOUND,
        f"Change of target NLL {interval(change, 3, sign=True)}.",
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
        f"{interval(change, 1, sign=True, scale=100)} points. Lost {np.sum(right & ~mine)} of the "
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
    longer = bench.per_over(without.key, about.key, "emitted", "rounds")
    worse = bench.change(without.key, about.key, "nll")
    claim = (
        f"{about.rule}, without the {part}: more is kept and the text gets worse ({about.drafter})."
    )
    evidence = (
        f"Ratio of tau {interval(longer, 2)}, change of target NLL {interval(worse, 3, sign=True)}."
    )
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


def _above_one(claim: str, measure: str, ratio: Interval, **options: Any) -> Verdict:
    return judge(claim, 1 - ratio, f"{measure} {interval(ratio, 2)}.", **options)


def gate_table(bench: Bench) -> Table:
    """How often the gate is open at mismatches, and the quantiles of its measure."""
    rows: list[list[str]] = []
    for arm, mine in bench.arms.items():
        events = [event for row in mine for event in row.get("events", [])]
        gates = np.array([one["gate"] for one in events if one["gate"] is not None])
        if not len(gates):
            continue
        quantiles = np.quantile(gates, [0.1, 0.25, 0.5, 0.75, 0.9])
        loosened = 100 * np.mean([one["loosened"] for one in events])
        rows.append(
            [
                bench.about[arm].title,
                str(len(gates)),
                f"{100 * np.mean(gates >= 0.3):.0f}",
                f"{loosened:.0f}",
            ]
            + [f"{one:.2f}" for one in quantiles]
        )
    columns = ["Arm", "mismatches", "at least 0.3 nats, %", "kept, %"]
    return Table(
        columns + [f"{share} % quantile" for share in (10, 25, 50, 75, 90)],
        rows,
        note="The measure at mismatches that were judged: entropy of the three most likely tokens "
        "of the target, nats.",
    )


def draw_acceptance(bench: Bench, folder: Path) -> Figure:
    """How many drafted tokens each round kept, a bar per arm with drafts."""
    import matplotlib as mpl

    arms = [arm for arm, about in bench.about.items() if about.speculates]
    longest = max(bench.about[arm].tokens for arm in arms)
    shades = mpl.colormaps["viridis_r"](np.linspace(0.05, 0.95, longest + 1))
    table: list[dict[str, Any]] = []
    with figure(folder, "acceptance", size=(9, 0.42 * len(arms) + 1.3)) as axes:
        for place, arm in enumerate(reversed(arms)):
            counts = Counter(one for row in bench.arms[arm] for one in row["accepted_counts"])
            left, rounds = 0.0, max(sum(counts.values()), 1)
            for kept in range(longest + 1):
                share = 100 * counts[kept] / rounds
                axes.barh(place, share, left=left, color=shades[kept], height=0.72)
                left += share
                table.append({"arm": arm, "kept": kept, "rounds": counts[kept], "percent": share})
        axes.set_yticks(range(len(arms)), [bench.about[arm].title for arm in reversed(arms)])
        axes.set_xlabel("% of rounds")
        axes.set_xlim(0, 100)
        axes.grid(visible=False)
        boxes = [mpl.patches.Patch(color=shades[kept]) for kept in range(longest + 1)]
        names = [str(kept) for kept in range(longest + 1)]
        axes.figure.legend(
            boxes, names, loc="outside upper right", ncols=longest + 1, fontsize=9,
            title="drafted tokens kept", title_fontsize=9, handlelength=1, columnspacing=0.8,
        )  # fmt: skip
    write_csv(folder, "acceptance", table)
    return Figure("acceptance", "Drafted tokens kept per round; rounds without a draft count as 0.")


def paper_table() -> Table:
    """The paper's figures, labelled as such."""
    return Table(
        ["The paper's figures (not comparable)", "Setting", "Speed-up", "tau", "Source"],
        [
            ["Llama-3.1-70B, FLy", "mean, T=0, out of domain", "2.74", "12.41", "second-hand"],
            ["Llama-3.1-70B, SpS (exact)", "same", "2.04", "10.91", "second-hand"],
            ["Llama-3.1-405B, FLy", "same", "4.80", "17.13", "second-hand"],
            ["Llama-3.1-70B, FLy, W=0", "HumanEval", "3.42", "15.59", "second-hand"],
            ["Llama-3.1-70B, FLy, theta=0", "HumanEval", "2.98", "12.76", "second-hand"],
        ],
        note="arXiv 2511.22972; draft Llama-3.1-8B, AMD Instinct MI355X, speeds over the library's "
        "generate. Another model, drafter and machine than ours: read directions, not values.",
    )


def result_rows(bench: Bench, benched: Artifact) -> list[dict[str, Any]]:
    """Rows of `results.json`: `{paper, method, pattern, seed, metrics, intervals, n, artifact}`."""
    found = []
    for arm, mine in bench.arms.items():
        measures: dict[str, Interval | None] = {
            "tokens_per_second": bench.speed(arm),
            "speed_over_plain": bench.speed_ratio(arm, "plain"),
            "acceptance_length": bench.acceptance_length(arm),
            "target_passes_per_token": bench.per(arm, "rounds", "emitted"),
            "drafter_passes_per_token": bench.per(arm, "draft_passes", "emitted"),
            "loosened_per_100_tokens": bench.per(arm, "loosened", "tokens", 100),
            "target_nll": bench.mean(arm, "nll"),
            "target_nll_over_plain": bench.change(arm, "plain", "nll"),
            "distinct_2": bench.mean(arm, "distinct"),
            "longest_repeat_tokens": bench.mean(arm, "longest_repeat"),
        }
        known = {key: one for key, one in measures.items() if one is not None}
        found.append(
            {
                "paper": "fly",
                "method": arm,
                "title": bench.about[arm].title,
                "pattern": "",
                "seed": benched.manifest["seed"],
                "lossless": bench.about[arm].lossless,
                "metrics": {key: one.value for key, one in known.items()},
                "intervals": {key: one.ends for key, one in known.items()},
                "n": dict.fromkeys(known, len(mine)),
                "artifact": benched.label,
            }
        )
    return found
