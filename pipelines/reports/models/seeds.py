"""Calibration seeds beside each other: perplexity per seed, and differences paired by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from effllm.modules.evaluation.intervals import Interval, over_seeds
from effllm.pipelines.reports.models.comparison import Comparison, Row
from effllm.pipelines.reports.models.tables import ROLES
from effllm.pipelines.reports.page import Table
from effllm.pipelines.reports.table import Column, columns, make_table


def seeds_table(data: Comparison, rows: Sequence[Row], *, role: str = "test") -> Table:
    """Perplexity per calibration seed, mean and standard deviation.

    Args:
        data: how rows are compared.
        rows: in the order of the table; those of one method share a line.
        role: heldout or test.
    """
    by_method: dict[str, dict[int | None, float]] = defaultdict(dict)
    for row in rows:
        by_method[row.method][row.subject.seed] = data.perplexity(row, role).value
    seeds = sorted({row.subject.seed for row in rows if row.subject.seed is not None})
    logs = {method: np.log(list(values.values())) for method, values in by_method.items()}
    return make_table(
        by_method,
        Column(f"{ROLES[role]} perplexity", lambda method: method),
        *columns(
            {seed: f"seed {seed}" for seed in seeds},
            lambda method, seed: by_method[method].get(seed),
        ),
        Column("mean", lambda method: float(np.exp(np.mean(logs[method]))), best=min),
        Column(
            "spread, %",
            lambda method: float(np.std(logs[method], ddof=1)) if len(logs[method]) > 1 else None,
            ".1%",
        ),
        note="Each seed draws its own calibration windows. Mean: geometric. Spread: standard "
        "deviation over seeds of the logarithm.",
        ranked=lambda method: method != "Dense",
    )


def seed_differences(
    data: Comparison, method: tuple[str, str], control: tuple[str, str], role: str = "test"
) -> tuple[Interval | None, list[float]]:
    """Relative change in percent from a control to a method, paired by seed; None for under two.

    Args:
        data: rows of all seeds.
        method: base and variant of a row.
        control: the same of another.
        role: heldout or test.
    """
    arms = []
    for kind in (method, control):
        rows = [row for row in data.rows if (row.base, row.variant) == kind]
        arms.append({row.subject.seed or 0: row.subject.examples[role].mean() for row in rows})
    shared = sorted(set(arms[0]) & set(arms[1]))
    logs = np.array([arms[0][seed] - arms[1][seed] for seed in shared])
    each = [float(change) for change in 100 * np.expm1(logs)]
    if len(logs) < 2:
        return None, each
    log = over_seeds(logs)
    ends = [float(100 * np.expm1(end)) for end in (log.value, log.low, log.high)]
    return Interval(*ends), each
