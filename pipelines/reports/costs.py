"""What passes cost on the machine of a run, and what speculation was forecast to bring there."""

from __future__ import annotations

from typing import Any

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts.decoding import PassCosts
from effllm.pipelines.reports.decoding import interval
from effllm.pipelines.reports.page import Table


def pass_table(costs: PassCosts) -> Table:
    """Cost of a pass over n tokens, and how near one token comes to the memory's limit."""
    figures = costs.figures
    reading = figures["reading"]
    rows = [
        [width, f"{1000 * cost['seconds']:.1f}", interval(_ratio(cost), 2)]
        for width, cost in figures["passes"].items()
    ]
    return Table(
        ["Tokens in a pass", "ms", "over one token"],
        rows,
        note=f"Behind {figures['context']} cached tokens; median ms, and ratio of means with its "
        f"95 % interval. A pass reads {figures['bytes_per_pass'] / 1e6:.0f} MB; "
        f"merely reading so much memory, in turns with the passes, takes "
        f"{1000 * reading['seconds']:.1f} ms, so one-token passes reach "
        f"{interval(_ratio(reading), 0, scale=100)} % of the memory's limit.",
    )


def _ratio(cost: dict[str, Any]) -> Interval:
    return Interval(cost["ratio"], *(cost["interval"] or ()))


def forecast_table(costs: PassCosts) -> Table:
    """Per drafter the K that held-out prompts recommend, and whether it pays at all."""
    rows: list[list[str]] = []
    for arm, forecast in costs.figures["forecasts"].items():
        best = forecast["best"]
        draft = costs.figures["draft_seconds"][arm]
        rows.append(
            [
                arm.replace("_", " "),
                f"{1000 * draft:.1f}" if draft else "no model",
                str(best["tokens"]),
                f"{best['tokens_per_round']:.2f}",
                f"{best['break_even']:.2f}",
                f"{best['speed']:.2f}",
                "pays" if forecast["pays"] else "does not pay",
            ]
        )
    return Table(
        [
            "Drafter, exact",
            "ms per draft pass",
            "best K",
            "tokens per round at it",
            "break-even",
            "speed over plain",
            "so it",
        ],
        rows,
        note="A forecast for held-out prompts from costs and acceptance, tau(K) / (K c + v(K+1)), "
        "without the prompt's pass; the speeds above are measured on other prompts.",
    )
