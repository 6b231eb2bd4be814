"""Measure what passes cost here, and forecast whether speculation pays and at which K."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.ranges import Dtype, PositiveInt, Seed
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Prompts
from effllm.pipelines.artifacts.decoding import PassCosts
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext
from effllm.pipelines.stages.decoding.loading import DecodingArm, DecodingModels

if TYPE_CHECKING:
    from effllm.modules.decoding.records import RoundRecord
    from effllm.modules.inference.runner import ModelRunner


@dataclass(frozen=True, kw_only=True)
class MeasurePasses(Stage):
    """Costs by timing, acceptance by decoding held-out prompts exactly with a long draft.

    Args:
        arms: name -> `{proposer, verifier, draft}` as in `DecodeBench`; K of the proposer is the
            largest that is judged.
        max_new_tokens: budget per prompt.
        context: cached tokens in front of the timed passes.
        repeats: timed passes of each width.
        dtype: of all models.
        fast: take the fastest path of this machine.
        seed: of all draws.
    """

    INPUTS: ClassVar = {
        "model": Checkpoint,
        "prompts": Prompts,
        "drafts": Many(Checkpoint, ordered=True),
    }
    OUTPUT: ClassVar = PassCosts
    TIMED: ClassVar = True

    arms: dict[str, DecodingArm]
    max_new_tokens: PositiveInt
    context: PositiveInt
    repeats: PositiveInt
    dtype: Dtype
    fast: bool
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`costs.json`."""
        from effllm.modules.decoding.break_even import bytes_per_pass
        from effllm.modules.decoding.proposers.draft import ModelDrafter
        from effllm.modules.inference.runner import ModelRunner

        models = DecodingModels.load(ctx, self.dtype, fast=self.fast)
        prompts = [
            models.encode(one.text, chat=one.chat)
            for one in ctx.input("prompts", Prompts).prompts()
        ]
        rounds: dict[str, list[RoundRecord]] = {}
        passes = {}
        for number, (name, arm) in enumerate(self.arms.items()):
            session = models.decoder(arm).join(models.target, models.tokenizer)
            rounds[name] = [
                one
                for prompt in prompts
                for one in session.decode(prompt, self.max_new_tokens, seed=self.seed).rounds
            ]
            passes[name] = 0.0
            if isinstance(session.proposer, ModelDrafter):
                passes[name] = self._draft_seconds(session.proposer.runner)
            ctx.progress(number + 1, len(self.arms), "arm")
        widest = 1 + max(one.drafted for mine in rounds.values() for one in mine)
        runner = ModelRunner(models.target)
        costs = self._costs(runner, widest)
        single = costs[1]["seconds"]
        reading = costs.pop(0)
        ratios = {width: cost["ratio"] for width, cost in costs.items()}
        forecasts = {
            name: _forecast(mine, passes[name] / single, ratios) for name, mine in rounds.items()
        }
        figures = {
            "context": self.context,
            "passes": costs,
            "bytes_per_pass": bytes_per_pass(runner),
            "reading": reading,
            "draft_seconds": passes,
            "forecasts": forecasts,
        }
        PassCosts.write(ctx.workdir, figures)
        best = {f"{name}/best_tokens": one["best"]["tokens"] for name, one in forecasts.items()}
        speeds = {
            f"{name}/speed_over_plain": one["best"]["speed"] for name, one in forecasts.items()
        }
        return {
            "seconds_per_pass": single,
            "share_of_limit": reading["ratio"],
            **models.path_metrics(),
            **best,
            **speeds,
        }

    def _costs(self, runner: ModelRunner, widest: int) -> dict[int, dict[str, Any]]:
        """Median seconds per width, and the ratio to one token with its interval.

        Width 0 merely reads the weights: the limit of what one token can cost.
        """
        import numpy as np

        from effllm.modules.decoding.break_even import pass_seconds
        from effllm.modules.evaluation.intervals import estimate

        widths = sorted({0, 1, 2, 3, 4, 6, 8, 12, 16, widest} & set(range(widest + 1)))
        seconds = pass_seconds(runner, widths, context=self.context, repeats=self.repeats)
        found = {}
        for width in widths:
            ratio = estimate(
                np.stack([seconds[width], seconds[1]], axis=1),
                transform=lambda means: means[..., 0] / means[..., 1],
            )
            found[width] = {
                "seconds": float(np.median(seconds[width])),
                "ratio": ratio.value,
                "interval": ratio.ends,
            }
        return found

    def _draft_seconds(self, runner: ModelRunner) -> float:
        """Median seconds of a draft model's pass over one token."""
        import numpy as np

        from effllm.modules.decoding.break_even import pass_seconds

        found = pass_seconds(runner, [1], context=self.context, repeats=self.repeats)
        return float(np.median(found[1]))


def _forecast(
    rounds: list[RoundRecord], draft_cost: float, ratios: dict[int, float]
) -> dict[str, Any]:
    """Tokens per round and speed over plain decoding for every K, and the best of them."""
    import numpy as np

    from effllm.modules.decoding.break_even import speed_over_plain, tokens_per_round

    accepted, drafted = [one.accepted for one in rounds], [one.drafted for one in rounds]
    # A drafter that looks several tokens up in one pass needs fewer passes than tokens.
    per_token = sum(one.draft_passes for one in rounds) / max(1, sum(drafted))
    known, costs = sorted(ratios), [ratios[width] for width in sorted(ratios)]
    table = []
    for count in range(1, max(drafted, default=0) + 1):
        widths = [min(one, count) for one in drafted]
        tokens = tokens_per_round(accepted, drafted, count)
        drafting = float(np.mean(widths)) * per_token
        passing = float(np.mean(np.interp([1 + one for one in widths], known, costs)))
        table.append(
            {
                "tokens": count,
                "tokens_per_round": tokens,
                "break_even": drafting * draft_cost + passing,
                "speed": speed_over_plain(tokens, drafting, draft_cost, passing),
            }
        )
    nothing = {"tokens": 0, "tokens_per_round": 1.0, "break_even": 1.0, "speed": 1.0}
    best = max([nothing, *table], key=lambda one: one["speed"])
    return {"draft_cost": draft_cost, "by_tokens": table, "best": best, "pays": best["tokens"] > 0}
