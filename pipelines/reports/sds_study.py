"""Two studies around SDS: which re-dense setting held-out text prefers, and what seeds change."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import numpy as np

from effllm.modules.evaluation.intervals import Interval, over_seeds
from effllm.pipelines.reports.page import Table, Text, Verdict
from effllm.pipelines.reports.sds import (
    BASES,
    CONTROLS,
    Comparison,
    Row,
    number,
    order_in_table,
    seconds,
    signed,
    verdict,
)

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
    control = data.find(base, CONTROL)
    by_setting: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in _regrown(data, base):
        by_setting[setting(row)][_model(row)] = row
    body = []
    for kind, title in {"prune": "one-shot", **CONTROLS}.items():
        found = data.find(base, kind)
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
        "held-out S3. Paired 95 % bootstrap intervals over documents, one calibration seed.",
        strong=frozenset(strong),
    )


def chosen_on_test(data: Comparison, base: str) -> Text:
    """What the setting chosen on held-out text does on test text."""
    rows = [row for row in _regrown(data, base) if _model(row) == "S3"]
    best = min(rows, key=lambda row: data.perplexity(row, "heldout").value)
    lines = []
    for kind, title in CONTROLS.items():
        control = data.find(base, kind)
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
    """Test perplexity per calibration seed, mean and standard deviation."""
    seeds = sorted({row.subject.seed for row in data.rows if row.subject.seed is not None})
    body: list[list[str]] = []
    strong = set()
    for method, rows in _by_method(data).items():
        values = {row.subject.seed: data.perplexity(row).value for row in rows}
        logs = np.log(list(values.values()))
        spread = f"{100 * np.std(logs, ddof=1):.1f}" if len(logs) > 1 else ""
        cells = [number(values[seed]) if seed in values else "" for seed in seeds]
        if rows[0].variant in ("sds", "s_ds"):
            strong.add(len(body))
        body.append([method, *cells, number(float(np.exp(np.mean(logs)))), spread])
    return Table(
        ["Test perplexity", *(f"seed {seed}" for seed in seeds), "mean", "spread, %"],
        body,
        note="Each seed draws its own calibration windows. Mean: geometric. Spread: standard "
        "deviation over seeds of the logarithm.",
        strong=frozenset(strong),
    )


def seeds_verdicts(data: Comparison) -> list[Verdict]:
    """SDS, and SDS started dense, against one-shot and every control; intervals over seeds."""
    found = []
    methods = {"sds": "SDS", "s_ds": "SDS started from the dense model (S-DS)"}
    titles = {"prune": "one-shot", **{kind: f"+ {title}" for kind, title in CONTROLS.items()}}
    for base, method, kind in product(BASES, methods, titles):
        change, each = seed_differences(data, base, method, kind)
        if change is None:
            continue
        evidence = (
            f"Test perplexity {signed(change)} %, Student's t interval over {len(each)} "
            f"calibration seeds; each: {', '.join(f'{one:+.1f}' for one in each)}."
        )
        claim = f"{methods[method]} beats {BASES[base]} {titles[kind]} in perplexity."
        paper = (method, kind) == ("sds", "prune")
        found.append(verdict(claim, change, evidence, margin=0.0, paper=paper))
    return found


def pooled_spread(data: Comparison) -> Text:
    """How much one calibration draw moves the differences above."""
    changes = [
        seed_differences(data, base, method, kind)[1]
        for base, method, kind in product(BASES, ("sds", "s_ds"), ("prune", *CONTROLS))
    ]
    spreads = [np.var(each, ddof=1) for each in changes if len(each) > 1]
    if not spreads:
        return Text("One calibration seed only: it cannot say how much another draw would move.")
    return Text(
        f"Over these {len(spreads)} comparisons, paired by seed, the differences have a pooled "
        f"standard deviation of {np.sqrt(np.mean(spreads)):.1f} points."
    )


def seed_differences(
    data: Comparison, base: str, method: str, control: str
) -> tuple[Interval | None, list[float]]:
    """Relative change in percent from a control to a method, paired by seed; None for under two."""
    arms = []
    for variant in (method, control):
        rows = [row for row in data.rows if (row.base, row.variant) == (base, variant)]
        arms.append({row.subject.seed or 0: row.subject.examples["test"].mean() for row in rows})
    shared = sorted(set(arms[0]) & set(arms[1]))
    logs = np.array([arms[0][seed] - arms[1][seed] for seed in shared])
    each = [float(one) for one in 100 * np.expm1(logs)]
    if len(logs) < 2:
        return None, each
    log = over_seeds(logs)
    ends = [float(100 * np.expm1(end)) for end in (log.value, log.low, log.high)]
    return Interval(*ends), each


def _by_method(data: Comparison) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(data.rows, key=order_in_table):
        grouped[row.method].append(row)
    return grouped
