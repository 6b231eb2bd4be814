"""What passes cost on the machine of a run, and what speculation was forecast to bring there."""

from __future__ import annotations

from typing import Any

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts.decoding import PassCosts
from effllm.pipelines.reports.page import Table
from effllm.pipelines.reports.table import Column, make_table
from effllm.pipelines.reports.words import show


def pass_table(costs: PassCosts) -> Table:
    """Cost of a pass over n tokens, and how near one token comes to the memory's limit."""
    figures = costs.figures
    passes, reading = figures["passes"], figures["reading"]
    return make_table(
        passes,
        Column("Tokens in a pass", lambda width: width),
        Column("ms", lambda width: 1000 * passes[width]["seconds"], ".1f"),
        Column("over one token", lambda width: _ratio(passes[width]), ".2f"),
        note=f"After {figures['context']} cached tokens; median ms, and ratio of means with its "
        f"95 % interval. A pass reads {figures['bytes_per_pass'] / 1e6:.0f} MB; "
        f"merely reading so much memory, in turns with the passes, takes "
        f"{1000 * reading['seconds']:.1f} ms, so one-token passes reach "
        f"{show(_ratio(reading), '.0%')} % of the memory's limit.",
    )


def _ratio(cost: dict[str, Any]) -> Interval:
    return Interval(cost["ratio"], *(cost["interval"] or ()))


def forecast_table(costs: PassCosts) -> Table:
    """Per drafter the K that held-out prompts recommend, and whether it pays at all."""
    forecasts, seconds = costs.figures["forecasts"], costs.figures["draft_seconds"]
    return make_table(
        forecasts,
        Column("Drafter, exact", lambda arm: arm.replace("_", " ")),
        Column(
            "ms per draft pass",
            lambda arm: 1000 * seconds[arm] if seconds[arm] else "no model",
            ".1f",
        ),
        Column("best K", lambda arm: str(forecasts[arm]["best"]["tokens"])),
        Column(
            "tokens per round at it", lambda arm: forecasts[arm]["best"]["tokens_per_round"], ".2f"
        ),
        Column("break-even", lambda arm: forecasts[arm]["best"]["break_even"], ".2f"),
        Column("speed over plain", lambda arm: forecasts[arm]["best"]["speed"], ".2f", best=max),
        Column("so it", lambda arm: "pays" if forecasts[arm]["pays"] else "does not pay"),
        note="A forecast for held-out prompts from costs and acceptance, tau(K) / (K c + v(K+1)), "
        "without the prompt's pass; the speeds above are measured on other prompts.",
    )
