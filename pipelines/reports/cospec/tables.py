"""Tables and rows of the CoSpec report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.reports.cospec.study import TITLES, Study
from effllm.pipelines.reports.page import Block, Passages, Table
from effllm.pipelines.reports.results import ResultRow
from effllm.pipelines.reports.table import Cell, Column, columns, make_table
from effllm.pipelines.reports.words import show

_HEADROOM = {
    "target": "target right, %",
    "draft": "draft alone right, %",
    "oracle": "oracle over all choices, %",
    "union": "union of both over the target, points",
    "fixed": "problems that one draft token fixes, %",
    "fixed_null": "the same with the target's own next token (null), %",
    "excess": "excess over the null, points",
    "realizable": "gain of the warm start, points",
    "cells": "forks 11 / 10 / 01 / 00",
    "separability": "area under the curve, 01 against 10",
    "gate": "gate",
}


def main_table(study: Study) -> Table:
    """Every rule: right answers, paired gain, McNemar, rate, passes, predicted speed-up."""
    changed = {rule: study.changed(rule) for rule in TITLES if rule in study.right}

    def counted(rule: str) -> float | None:
        counts = study.counts.get(rule)
        return counts["accepted"].sum() / max(1, counts["decisions"].sum()) if counts else None

    def change(rule: str) -> tuple[float, float, float] | None:
        return None if rule == "target" else changed[rule]

    n, seeds = study.right["target"].shape[1], study.right["cospec"].shape[0]
    return make_table(
        changed,
        Column("Rule", lambda rule: TITLES[rule]),
        Column("right, %", study.share, ".1%", best=max),
        Column(
            "over the target, points",
            lambda rule: study.gain(rule) if change(rule) else None,
            "+.1%",
        ),
        Column(
            "won : lost",
            lambda rule: "{:.0f} : {:.0f}".format(*won[:2]) if (won := change(rule)) else None,
        ),
        Column("McNemar p", lambda rule: f"{won[2]:.2g}" if (won := change(rule)) else None),
        Column("draft's token kept, %", counted, ".0%"),
        Column(
            "target passes a problem",
            lambda rule: study.counts[rule]["blocks"].mean() if rule in study.counts else None,
            ".2f",
        ),
        Column(
            "predicted speed-up",
            lambda rule: study.predicted_speed(rule) if rule in study.counts else None,
            ".2f",
        ),
        note=f"{n:,} test problems; rules with seeds: {seeds}, resampled too, counts and shares "
        "their means, p their median. Every threshold was chosen on validation problems by the "
        "highest lower bound of the gain, never among the candidates; a rule that stays at never "
        "is the target. Kept: of the mismatches that are arbitrated. Speed-up over the target "
        "alone: predicted from counts, not measured. Bold: the best rule that can be used.",
        ranked=lambda rule: not rule.startswith("oracle"),
    )


_TIMED = {"plain": "Target alone", "exact": "Exact speculation", "cospec": "CoSpec, as shipped"}
_PREDICTED = {"exact": "target", "cospec": "cospec"}  # arm -> rule with the counts


def speed_table(studies: Sequence[Study]) -> Table | None:
    """Measured speed beside the predicted one, for pairs that were timed."""
    rows = [(study, arm) for study in studies if study.timed for arm in study.timed.arms]
    if not rows:
        return None

    def over_plain(row: tuple[Study, str]) -> Interval | None:
        study, arm = row
        assert study.timed is not None
        if arm == "plain":
            return None
        return study.timed.ratio_over(arm, "plain", "tokens", "seconds")

    def ratio(row: tuple[Study, str], top: str, bottom: str, scale: float) -> Interval | None:
        study, arm = row
        assert study.timed is not None
        return study.timed.ratio(arm, top, bottom, scale)

    def predicted(row: tuple[Study, str]) -> float | None:
        study, arm = row
        return study.predicted_speed(_PREDICTED[arm]) if arm in _PREDICTED else None

    return make_table(
        rows,
        Column("Decoding", lambda row: f"{row[0].name}: {_TIMED[row[1]]}"),
        Column("tokens/s", lambda row: ratio(row, "tokens", "seconds", 1.0), best=max),
        Column("measured speed-up", over_plain, ".2f"),
        Column("predicted", predicted, ".2f"),
        Column(
            "rule and bookkeeping, %",
            lambda row: ratio(row, "decide_seconds", "seconds", 100.0),
        ),
        note="The arms took turns on the same test problems; time after the target's first token. "
        "Predicted: from counts, over all test problems. Rule and bookkeeping: share of the time "
        "that the verifier takes, observations and policy among it.",
    )


def headroom_table(studies: Sequence[Study]) -> Table:
    """What could be gained on validation problems, a column per pair."""

    def cell(study: Study, key: str) -> Cell:
        found = study.headroom[key]
        match key:
            case "cells":
                return " / ".join(str(count) for count in found.values())
            case "separability":
                return show(Interval(**found), ".3f") if found else "no interval"
            case "gate":
                return "open" if found["open"] else "closed"
        return Interval(**found)

    return make_table(
        _HEADROOM,
        Column("Validation problems", lambda key: _HEADROOM[key]),
        *columns(
            {number: study.name for number, study in enumerate(studies)},
            lambda key, number: cell(studies[number], key),
            ".1%",
        ),
        note="A fork is a mismatch on the target's path: the draft's token there, the target after "
        "it. Cells: right with the target's token, right with the draft's. The gate opens if the "
        "warm start's gain is clear of 0, or excess is and the area under the curve is clear of "
        "0.6.",
    )


def leaning_table(studies: Sequence[Study]) -> Table:
    """What the first seed's policy loses without blocks of features, and without single ones."""
    lost = {study.name: study.figures["leaning"] for study in studies}
    names = next(iter(lost.values()))
    most = {name: max(of_pair[name] for of_pair in lost.values()) for name in names}
    blocks = [name for name in names if name.endswith(")")]
    single = sorted((name for name in most if name not in blocks), key=lambda name: -most[name])
    return make_table(
        [*blocks, *single[:8]],
        Column("Hidden", lambda name: name.replace("_", " ")),
        *columns({pair: pair for pair in lost}, lambda name, pair: lost[pair][name], "+.1%"),
        note="Points of validation accuracy lost if features are hidden from the reinforced policy "
        "of the first seed, its threshold unchanged: all blocks, and the eight features that "
        "matter most.",
    )


def seeds_table(studies: Sequence[Study]) -> Table:
    """What every seed ships and gains."""
    seeds = [
        (study, number, arm)
        for study in studies
        for number, arm in enumerate(study.rules["cospec"])
    ]
    shown = {
        "cospec": "test: shipped",
        "warm": "warm start",
        "rl": "reinforcement",
        "self_rl": "self-arbitration",
        "random": "random",
    }

    def gain(row: tuple[Study, int, dict[str, Any]], rule: str) -> float:
        study, number, _ = row
        return float(study.right[rule][number].mean() - study.right["target"][0].mean())

    def threshold(row: tuple[Study, int, dict[str, Any]]) -> str:
        found = row[2]["validation"]["threshold"]
        return found if isinstance(found, str) else f"{found:.2f}"

    return make_table(
        seeds,
        Column("Policy", lambda row: f"{row[0].name}, seed {row[2]['seed']}"),
        Column("ships", lambda row: row[0].figures["shipped"][str(row[2]["seed"])]),
        Column("threshold", threshold),
        Column("validation", lambda row: row[2]["validation"]["gain"], "+.1%"),
        *columns(shown, gain, "+.1%"),
        note="Gains over the target, points.",
    )


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


def texts(studies: Sequence[Study]) -> list[Block]:
    """Problems whose verdict the first seed's policy changes."""
    return [
        Passages(
            f"{study.name}, {text['id']}: {text['prompt']} ({'won' if text['won'] else 'lost'})",
            {"Target": [text["target"]], "CoSpec": [text["policy"]], "Right": [text["answer"]]},
        )
        for study in studies
        for text in study.figures["texts"]
    ]


def result_rows(studies: Sequence[Study]) -> list[ResultRow]:
    """Rows of `results.json`, a rule of a pair each."""
    found = []
    for study in studies:
        for rule, right in study.right.items():
            figures: dict[str, Interval | float] = {"right": study.share(rule)}
            if rule != "target":
                figures["gain"] = study.gain(rule)
            if rule in study.counts:
                figures["predicted_speed"] = study.predicted_speed(rule)
            found.append(
                ResultRow(
                    paper="cospec",
                    method=rule,
                    title=TITLES[rule],
                    pattern=study.name,
                    seed=study.verdicts.manifest["seed"],
                    artifact=study.verdicts.label,
                    figures=figures,
                    n=dict.fromkeys(figures, int(right.shape[1])),
                )
            )
    return found
