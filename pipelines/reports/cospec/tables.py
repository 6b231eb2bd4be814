"""Tables of the CoSpec report."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.reports.cospec.study import TITLES, Study
from effllm.pipelines.reports.page import Block, Passages, Table

_PAPER = Path(__file__).parent / "paper.csv"


def percent(value: Interval, sign: bool = False) -> str:
    """`12.3 [11.0, 13.5]`, in hundredths."""
    return value.text(lambda one: f"{100 * one:{'+' if sign else ''}.1f}")


def main_table(study: Study) -> Table:
    """Every rule: right answers, paired gain, McNemar, rate, passes, predicted speed-up."""
    rows: list[list[str]] = []
    strong = set()
    for rule, title in TITLES.items():
        if rule not in study.right:
            continue
        if rule == "cospec":
            strong.add(len(rows))
        row = [title, percent(study.share(rule))]
        if rule == "target":
            row += ["", "", ""]
        else:
            won, lost, p = study.changed(rule)
            row += [percent(study.gain(rule), sign=True), f"{won:.0f} : {lost:.0f}", f"{p:.2g}"]
        if rule in study.counts:
            counts = study.counts[rule]
            kept = 100 * counts["accepted"].sum() / max(1, counts["decisions"].sum())
            cells = [f"{kept:.0f}", f"{counts['blocks'].mean():.2f}"]
            row += [*cells, f"{study.predicted_speed(rule):.2f}"]
        else:
            row += ["", "", ""]
        rows.append(row)
    columns = ["Rule", "right, %", "over the target, points", "won : lost", "McNemar p"]
    columns += ["draft's token kept, %", "target passes a problem", "predicted speed-up"]
    n, seeds = study.right["target"].shape[1], study.right["cospec"].shape[0]
    return Table(
        columns,
        rows,
        note=f"{n:,} test problems; rules with seeds: {seeds}, resampled too, counts and shares "
        "their means, p their median. Every threshold was chosen on validation problems by the "
        "highest lower bound of the gain, never among the candidates; a rule that stays at never "
        "is the target. Kept: of the mismatches that are arbitrated. Speed-up over the target "
        "alone: predicted from counts, not measured.",
        strong=frozenset(strong),
    )


def headroom_table(studies: Sequence[Study]) -> Table:
    """What could be gained on validation problems, a column per pair."""
    measures = {
        "target": "target right, %",
        "draft": "draft alone right, %",
        "oracle": "oracle over all choices, %",
        "union": "union of both over the target, points",
        "fixed": "problems that one draft token fixes, %",
        "fixed_null": "the same with the target's own next token (null), %",
        "excess": "excess over the null, points",
        "realizable": "gain of the warm start, points",
    }
    rows = [
        [title, *(percent(Interval(**study.headroom[key])) for study in studies)]
        for key, title in measures.items()
    ]
    rows.append(
        ["forks 11 / 10 / 01 / 00"]
        + [" / ".join(str(one) for one in study.headroom["cells"].values()) for study in studies]
    )
    rows.append(
        ["area under the curve, 01 against 10"]
        + [
            Interval(**study.headroom["separability"]).text(lambda one: f"{one:.3f}")
            if study.headroom["separability"]
            else "no interval"
            for study in studies
        ]
    )
    rows.append(
        ["gate"] + ["open" if study.headroom["gate"]["open"] else "closed" for study in studies]
    )
    return Table(
        ["Validation problems", *(study.name for study in studies)],
        rows,
        note="A fork is a mismatch on the target's path: the draft's token there, the target after "
        "it. Cells: right with the target's token, right with the draft's. The gate opens if the "
        "warm start's gain is clear of 0, or excess is and the area under the curve is clear of "
        "0.6.",
    )


def leaning_table(studies: Sequence[Study]) -> Table:
    """What the first seed's policy loses without blocks of features, and without single ones."""
    shown = {study.name: study.figures["leaning"] for study in studies}
    blocks = [name for name in next(iter(shown.values())) if name.endswith(")")]
    single = {name: max(one[name] for one in shown.values()) for name in next(iter(shown.values()))}
    most = sorted((n for n in single if n not in blocks), key=lambda n: -single[n])[:8]
    rows = [
        [name.replace("_", " "), *(f"{100 * shown[study.name][name]:+.1f}" for study in studies)]
        for name in (*blocks, *most)
    ]
    return Table(
        ["Hidden", *(study.name for study in studies)],
        rows,
        note="Points of validation accuracy lost if features are hidden from the reinforced policy "
        "of the first seed, its threshold unchanged: all blocks, and the eight features that "
        "matter most.",
    )


def seeds_table(studies: Sequence[Study]) -> Table:
    """What every seed ships and gains."""
    rows = []
    for study in studies:
        target = study.right["target"][0].mean()
        for number, arm in enumerate(study.rules["cospec"]):
            seed, point = arm["seed"], arm["validation"]
            threshold = point["threshold"]
            shown = threshold if isinstance(threshold, str) else f"{threshold:.2f}"
            rows.append(
                [
                    f"{study.name}, seed {seed}",
                    study.figures["shipped"][str(seed)],
                    shown,
                    f"{100 * point['gain']:+.1f}",
                    *(
                        f"{100 * (study.right[rule][number].mean() - target):+.1f}"
                        for rule in ("cospec", "warm", "rl", "self_rl", "random")
                    ),
                ]
            )
    columns = ["Policy", "ships", "threshold", "validation", "test: shipped"]
    columns += ["warm start", "reinforcement", "self-arbitration", "random"]
    return Table(columns, rows, note="Gains over the target, points.")


def known_table() -> Table:
    """What the paper says and what was designed here."""
    return Table(
        ["Part", "known from the paper (its abstract)", "designed here"],
        [
            ["Models", "two frozen models, a draft and a target", "three pairs made here"],
            [
                "Decision",
                "at mismatches, the draft's or the target's token",
                "the first five or so",
            ],
            ["Learning", "reinforcement from the final answer", "RLOO after a warm start on forks"],
            ["Observations", "", "57 figures of both distributions, no hidden states"],
            ["Policy", "", "mlp of 8 thousand weights; linear"],
            ["Reward", "final-answer correctness", "the verdict; times 1 + lambda g for speed"],
            ["Selection", "", "thresholds on validation; never ships what may do harm"],
            ["Claim", "right more often than the target, still faster", "the rule stated below"],
        ],
    )


def paper_table() -> Table:
    """Figures about the paper that were seen elsewhere."""
    with _PAPER.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ["figure", "value", "table", "conditions", "status"]
    return Table(
        ["Figures about the paper (not comparable)", *columns[1:]],
        [[row[name] for name in columns] for row in rows],
        note="None was read in the paper itself; none was checked.",
    )


def texts(study: Study) -> list[Block]:
    """Problems whose verdict the first seed's policy changes."""
    return [
        Passages(
            f"{study.name}, {one['id']}: {one['prompt']} ({'won' if one['won'] else 'lost'})",
            {"Target": [one["target"]], "CoSpec": [one["policy"]], "Right": [one["answer"]]},
        )
        for one in study.figures["texts"]
    ]


def result_rows(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Rows of `results.json`: `{paper, method, pattern, seed, metrics, intervals, n, artifact}`."""
    found = []
    for study in studies:
        for rule in study.right:
            measures = {"right": study.share(rule)}
            if rule != "target":
                measures["gain"] = study.gain(rule)
            metrics = {key: one.value for key, one in measures.items()}
            if rule in study.counts:
                metrics["predicted_speed"] = study.predicted_speed(rule)
            found.append(
                {
                    "paper": "cospec",
                    "method": rule,
                    "title": TITLES[rule],
                    "pattern": study.name,
                    "seed": study.verdicts.manifest["seed"],
                    "metrics": metrics,
                    "intervals": {key: one.ends for key, one in measures.items()},
                    "n": dict.fromkeys(metrics, study.right[rule].shape[1]),
                    "artifact": study.verdicts.label,
                }
            )
    return found
