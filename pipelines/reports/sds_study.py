"""Two studies around SDS: which re-dense setting held-out text prefers, and what seeds change."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import numpy as np

from effllm.pipelines.reports import seeds
from effllm.pipelines.reports.comparison import (
    Comparison,
    Row,
    number,
    seconds,
    signed,
)
from effllm.pipelines.reports.page import Table, Text, Verdict
from effllm.pipelines.reports.sds import BASES, CONTROLS, MAIN, conditions, order_in_table
from effllm.pipelines.reports.verdicts import judge

CONTROL = "refit_3"  # no re-dense step, at about the time of SDS


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
    control = data.find(base, CONTROL, MAIN)
    by_setting: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in _regrown(data, base):
        by_setting[setting(row)][_model(row)] = row
    body = []
    for kind, title in {"prune": "one-shot", **CONTROLS}.items():
        found = data.find(base, kind, MAIN)
        if found is not None:
            value = number(data.perplexity(found, "heldout").value)
            change = "" if found is control else _against(data, found, control)
            body.append([f"{BASES[base]}: {title}", "", "", value, change, seconds(found)])
    best = min(by_setting, key=lambda one: data.perplexity(by_setting[one]["S3"], "heldout").value)
    strong = set()
    for name, models in by_setting.items():
        values = [
            number(data.perplexity(models[model], "heldout").value) if model in models else ""
            for model in ("D", "S2", "S3")
        ]
        if name == best:
            strong.add(len(body))
        change = _against(data, models["S3"], control)
        body.append([f"SDS: {name}", *values, change, seconds(models["S3"])])
    return Table(
        ["Held-out perplexity", "D", "S2", "S3 or control", "vs refit three times, %", "Time"],
        body,
        note="All choices are made here, on held-out text. In bold: the setting with the lowest "
        "held-out S3. Paired 95 % intervals over documents, one calibration seed.",
        strong=frozenset(strong),
    )


def chosen_on_test(data: Comparison, base: str) -> Text:
    """What the setting chosen on held-out text does on test text."""
    rows = [row for row in _regrown(data, base) if _model(row) == "S3"]
    best = min(rows, key=lambda row: data.perplexity(row, "heldout").value)
    lines = []
    for kind, title in CONTROLS.items():
        control = data.find(base, kind, MAIN)
        if control is not None:
            lines.append(f"{signed(data.relative(best, control))} % against {title}")
    return Text(
        f"{BASES[base]}: held-out text chooses {setting(best)}. On test text its perplexity is "
        f"{number(data.perplexity(best).value)}: {'; '.join(lines)}."
    )


def _regrown(data: Comparison, base: str) -> list[Row]:
    """Models of one base pruner that went through a re-dense step."""
    return [
        row
        for row in data.rows
        if row.base == base and any(step["stage"] == "redense" for step in row.subject.history)
    ]


def _model(row: Row) -> str:
    """D, S2 or S3, by the last step of the history."""
    last = row.subject.history[-1]["stage"]
    return {"redense": "D", "prune": "S2", "adjust": "S3"}[last]


def _against(data: Comparison, row: Row, control: Row | None) -> str:
    return "" if control is None else signed(data.relative(row, control, "heldout"))


def seeds_table(data: Comparison) -> Table:
    """Test perplexity of every method per calibration seed."""
    rows = sorted(data.rows, key=order_in_table)
    return seeds.seeds_table(data, rows, strong=lambda row: row.variant in ("sds", "s_ds"))


def seeds_verdicts(data: Comparison) -> list[Verdict]:
    """SDS, and SDS started dense, against one-shot and every control; intervals over seeds."""
    found = []
    methods = {"sds": "SDS", "s_ds": "SDS started from the dense model (S-DS)"}
    titles = {"prune": "one-shot", **{kind: f"+ {title}" for kind, title in CONTROLS.items()}}
    for base, method, kind in product(BASES, methods, titles):
        change, each = seeds.seed_differences(data, (base, method), (base, kind))
        if change is None:
            continue
        evidence = (
            f"Test perplexity {signed(change)} %, Student's t interval over {len(each)} "
            f"calibration seeds; each: {', '.join(f'{one:+.1f}' for one in each)}."
        )
        claim = f"{methods[method]} beats {BASES[base]} {titles[kind]} in perplexity."
        paper = (method, kind) == ("sds", "prune")
        row = data.find(base, method, MAIN)
        assert row is not None
        differs = conditions(data, row)
        found.append(judge(claim, change, evidence, paper=paper, conditions=differs))
    return found


def pooled_spread(data: Comparison) -> Text:
    """How much one calibration draw moves the differences above."""
    changes = [
        seeds.seed_differences(data, (base, method), (base, kind))[1]
        for base, method, kind in product(BASES, ("sds", "s_ds"), ("prune", *CONTROLS))
    ]
    spreads = [np.var(each, ddof=1) for each in changes if len(each) > 1]
    if not spreads:
        return Text("One calibration seed only: it cannot say how much another draw would move.")
    return Text(
        f"Over these {len(spreads)} comparisons, paired by seed, the differences have a pooled "
        f"standard deviation of {np.sqrt(np.mean(spreads)):.1f} points."
    )
