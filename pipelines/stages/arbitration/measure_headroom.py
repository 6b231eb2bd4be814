"""What arbitration could gain, measured on validation problems before any reinforcement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.ranges import PositiveInt
from effllm.pipelines.artifacts.arbitration import Arbiters, BranchTries, Headroom
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class MeasureHeadroom(Stage):
    """Cells of all forks, what forks fix beyond luck, what can be told, and the gate.

    Args:
        candidates: thresholds of the warm-started policies that are tried.
        resamples: of the bootstrap, over problems.
    """

    INPUTS: ClassVar = {"branches": BranchTries, "warm": Arbiters}
    OUTPUT: ClassVar = Headroom

    candidates: PositiveInt
    resamples: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """`headroom.json`."""
        from effllm.modules.arbitration.headroom import measure

        tries = ctx.input("branches", BranchTries)
        figures = measure(
            tries.load("validation"),
            tries.beside("validation"),
            list(ctx.input("warm", Arbiters).policies().values()),
            candidates=self.candidates,
            resamples=self.resamples,
        )
        Headroom.write(ctx.workdir, figures)
        shown = ("union", "excess", "realizable")
        return {name: figures[name]["value"] for name in shown} | {
            "gate_open": figures["gate"]["open"]
        }
