"""Calibration seeds beside each other: perplexity per seed, and differences paired by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from effllm.modules.evaluation.intervals import Interval, over_seeds
from effllm.pipelines.reports.comparison import Comparison, Row, number
from effllm.pipelines.reports.page import Table

Kind = tuple[str, str]  # base and variant of a row


def seeds_table(
    data: Comparison, rows: Sequence[Row], *, role: str = "test", strong: Callable[[Row], bool]
) -> Table:
    """Perplexity per calibration seed, mean and standard deviation.

    Args:
        data: how rows are compared.
        rows: in the order of the table; those of one method share a line.
        role: heldout or test.
        strong: whether a row's line is shown in bold.
    """
    seeds = sorted({row.subject.seed for row in rows if row.subject.seed is not None})
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_method[row.method].append(row)
    body: list[list[str]] = []
    bold = set()
    for method, mine in by_method.items():
        values = {row.subject.seed: data.perplexity(row, role).value for row in mine}
        logs = np.log(list(values.values()))
        spread = f"{100 * np.std(logs, ddof=1):.1f}" if len(logs) > 1 else ""
        cells = [number(values[seed]) if seed in values else "" for seed in seeds]
        if strong(mine[0]):
            bold.add(len(body))
        body.append([method, *cells, number(float(np.exp(np.mean(logs)))), spread])
    name = "Held-out" if role == "heldout" else "Test"
    return Table(
        [f"{name} perplexity", *(f"seed {seed}" for seed in seeds), "mean", "spread, %"],
        body,
        note="Each seed draws its own calibration windows. Mean: geometric. Spread: standard "
        "deviation over seeds of the logarithm.",
        strong=frozenset(bold),
    )


def seed_differences(
    data: Comparison, method: Kind, control: Kind, role: str = "test"
) -> tuple[Interval | None, list[float]]:
    """Relative change in percent from a control to a method, paired by seed; None for under two."""
    arms = []
    for kind in (method, control):
        rows = [row for row in data.rows if (row.base, row.variant) == kind]
        arms.append({row.subject.seed or 0: row.subject.examples[role].mean() for row in rows})
    shared = sorted(set(arms[0]) & set(arms[1]))
    logs = np.array([arms[0][seed] - arms[1][seed] for seed in shared])
    each = [float(one) for one in 100 * np.expm1(logs)]
    if len(logs) < 2:
        return None, each
    log = over_seeds(logs)
    ends = [float(100 * np.expm1(end)) for end in (log.value, log.low, log.high)]
    return Interval(*ends), each
