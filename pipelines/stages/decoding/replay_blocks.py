"""Try settings of FLy, and other lossy rules, on recorded blocks; no model runs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Literal

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import (
    NonEmpty,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from effllm.pipelines.artifacts.decoding import Blocks, Replay
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.decoding.replay import Rule


@dataclass(frozen=True, kw_only=True)
class ReplayBlocks(Stage):
    """All combinations of K with FLy's settings, with margins and with typical acceptance.

    Args:
        tokens: K, drafted tokens per round; no arm may have recorded fewer.
        windows: W.
        thresholds: measure of the gate (`top`, `normalized`) -> theta.
        window_checks: `full`, `official`.
        margins: of the margin rule, nats.
        epsilons: of typical acceptance; delta keeps its ratio to epsilon in Medusa, 0.3 / 0.09.
        resamples: of the bootstrap over prompts.
    """

    VERSION: ClassVar[int] = 2  # 2: Student's t below 30 prompts
    INPUTS: ClassVar = {"blocks": Blocks}
    OUTPUT: ClassVar = Replay

    tokens: NonEmpty[PositiveInt]
    windows: list[NonNegativeInt]
    thresholds: dict[Literal["top", "normalized"], list[NonNegativeFloat]]
    window_checks: list[Literal["full", "official"]]
    margins: list[NonNegativeFloat]
    epsilons: list[PositiveFloat]
    resamples: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """`replay.jsonl`: `{arm, rule, tokens, ...settings, ...figures}`; `arms.json`."""
        from effllm.modules.decoding.replay import summarise
        from effllm.modules.evaluation.intervals import Interval

        recorded = ctx.input("blocks", Blocks)
        arms = recorded.arms()
        rules = self._rules()
        rows = []
        for number, (name, arm) in enumerate(arms.items()):
            longest = arm["proposer"]["tokens"]
            if max(self.tokens) > longest:
                raise ConfigError(
                    f"{name} was recorded with K = {longest}, the replay asks for "
                    f"K = {max(self.tokens)}; record with a larger K or ask for less"
                )
            blocks = recorded.blocks(name)
            for rule in rules:
                found = summarise(blocks, rule, resamples=self.resamples)
                label = type(rule).__name__.removesuffix("Rule").lower()
                figures = {
                    key: one.plain if isinstance(one, Interval) else one
                    for key, one in vars(found).items()
                }
                rows.append({"arm": name, "rule": label, **vars(rule), **figures})
            ctx.progress(number + 1, len(arms), "arm")
        Replay.write(ctx.workdir, rows, arms)
        return {"rules": len(rules), "arms": len(arms)}

    def _rules(self) -> list[Rule]:
        from effllm.modules.decoding.replay import ExactRule, FlyRule, MarginRule, TypicalRule

        rules: list[Rule] = []
        for tokens in self.tokens:
            rules.append(ExactRule(tokens=tokens))
            for measure, thresholds in self.thresholds.items():
                rules += [
                    FlyRule(
                        tokens=tokens,
                        window=window,
                        threshold=threshold,
                        measure=measure,
                        window_check=check,
                    )
                    for window, threshold, check in product(
                        self.windows, thresholds, self.window_checks
                    )
                ]
            rules += [MarginRule(tokens=tokens, margin=one) for one in self.margins]
            rules += [
                TypicalRule(tokens=tokens, epsilon=one, delta=one * 0.3 / 0.09)
                for one in self.epsilons
            ]
        return rules
