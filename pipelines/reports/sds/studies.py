"""Two studies around SDS: which re-dense setting held-out text prefers, and what seeds change."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import numpy as np

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.reports.models.comparison import Comparison, Row
from effllm.pipelines.reports.models.seeds import seed_differences
from effllm.pipelines.reports.page import Table, Verdict
from effllm.pipelines.reports.sds.claims import conditions
from effllm.pipelines.reports.sds.names import BASES, CONTROLS, MAIN
from effllm.pipelines.reports.table import Column, make_table
from effllm.pipelines.reports.verdicts import judge
from effllm.pipelines.reports.words import show

_CONTROL = "refit_3"  # no re-dense step, at about the time of SDS
_MODELS = {"redense": "D", "prune": "S2", "adjust": "S3"}  # by the last step of the history


def setting(row: Row) -> str:
    """How the re-dense step of a model was set."""
    step = next(step for step in row.subject.history if step["stage"] == "redense")
    kind = "accelerated" if step["accelerated"] else "plain"
    start = ", from dense" if step["start"] == "dense" else ""
    return (
        f"{step['steps']} {kind} steps, L1 {step['l1_weight']:g}, L2 {step['l2_weight']:g}{start}"
    )


def search_table(data: Comparison, base: str) -> Table:
    """Held-out perplexity of D, S2 and S3 per setting, beside the controls of the same base."""
    rows: dict[str, dict[str, Row]] = {}
    for kind, title in {"prune": "one-shot", **CONTROLS}.items():
        found = data.find(base, kind, MAIN)
        if found is not None:
            rows[f"{BASES[base]}: {title}"] = {"S3": found}
    for row in _regrown(data, base):
        model = _MODELS[row.subject.history[-1]["stage"]]
        rows.setdefault(f"SDS: {setting(row)}", {})[model] = row
    control = data.find(base, _CONTROL, MAIN)

    def heldout(line: str, model: str) -> float | None:
        row = rows[line].get(model)
        return data.perplexity(row, "heldout").value if row else None

    def change(line: str) -> Interval | None:
        row = rows[line].get("S3")
        if row is None or control is None or row is control:
            return None
        return data.relative(row, control, "heldout")

    return make_table(
        rows,
        Column("Held-out perplexity", lambda line: line),
        Column("D", lambda line: heldout(line, "D")),
        Column("S2", lambda line: heldout(line, "S2"), best=min),
        Column("S3 or control", lambda line: heldout(line, "S3"), best=min),
        Column("vs refit three times, %", change, "+"),
        Column("Time", lambda line: rows[line]["S3"].seconds if "S3" in rows[line] else None),
        note="All choices are made here, on held-out text. In bold: the setting with the lowest "
        "held-out S3. Paired 95 % intervals over documents, one calibration seed.",
        ranked=lambda line: line.startswith("SDS: "),
    )


def chosen_on_test(data: Comparison, base: str) -> str:
    """What the setting chosen on held-out text does on test text."""
    rows = [row for row in _regrown(data, base) if row.subject.history[-1]["stage"] == "adjust"]
    if not rows:
        return ""
    best = min(rows, key=lambda row: data.perplexity(row, "heldout").value)
    lines = []
    for kind, title in CONTROLS.items():
        control = data.find(base, kind, MAIN)
        if control is not None:
            lines.append(f"{show(data.relative(best, control), '+')} % against {title}")
    return (
        f"{BASES[base]}: held-out text chooses {setting(best)}. On test text its perplexity is "
        f"{show(data.perplexity(best).value)}: {'; '.join(lines)}."
    )


def _regrown(data: Comparison, base: str) -> list[Row]:
    """Models of one base pruner that went through a re-dense step."""
    return [
        row
        for row in data.rows
        if row.base == base and any(step["stage"] == "redense" for step in row.subject.history)
    ]


def seeds_verdicts(data: Comparison) -> dict[str, list[Verdict]]:
    """SDS, and SDS started dense, against one-shot and every control; intervals over seeds."""
    found: dict[str, list[Verdict]] = defaultdict(list)
    methods = {"sds": "SDS", "s_ds": "SDS started from the dense model (S-DS)"}
    titles = {"prune": "one-shot", **{kind: f"+ {title}" for kind, title in CONTROLS.items()}}
    for base, method, kind in product(BASES, methods, titles):
        change, each = seed_differences(data, (base, method), (base, kind))
        row = data.find(base, method, MAIN)
        if change is None or row is None:
            continue
        evidence = (
            f"Test perplexity {show(change, '+')} %, Student's t interval over {len(each)} "
            f"calibration seeds; each: {', '.join(f'{one:+.1f}' for one in each)}."
        )
        group = "one-shot pruning" if kind == "prune" else "controls without a re-dense step"
        found[f"{methods[method]} against {group}"].append(
            judge(
                f"{methods[method]} beats {BASES[base]} {titles[kind]} in perplexity.",
                change,
                evidence,
                below=0,
                paper=(method, kind) == ("sds", "prune"),
                conditions=conditions(data, row),
            )
        )
    return found


def seeds_answer(data: Comparison) -> str:
    """What SDS gains on one-shot pruning and on its control over seeds."""
    said = []
    for base, name in BASES.items():
        pairs = {"one-shot pruning": "prune", "refitting three times": _CONTROL}
        gains = {
            title: seed_differences(data, (base, "sds"), (base, kind))[0]
            for title, kind in pairs.items()
        }
        shown = [f"{show(one, '+')} % against {title}" for title, one in gains.items() if one]
        if shown:
            said.append(f"on {name} SDS changes test perplexity by {', by '.join(shown)}")
    return f"Over seeds, {'; '.join(said)}." if said else ""


def pooled_spread(data: Comparison) -> str:
    """How much one calibration draw moves the differences above."""
    changes = [
        seed_differences(data, (base, method), (base, kind))[1]
        for base, method, kind in product(BASES, ("sds", "s_ds"), ("prune", *CONTROLS))
    ]
    spreads = [np.var(each, ddof=1) for each in changes if len(each) > 1]
    if not spreads:
        return "One calibration seed only: it cannot say how much another draw would move."
    return (
        f"Over these {len(spreads)} comparisons, paired by seed, the differences have a pooled "
        f"standard deviation of {np.sqrt(np.mean(spreads)):.1f} points."
    )
