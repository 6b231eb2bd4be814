"""Time arbitrated decoding against the target alone and against exact speculation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from effllm.modules.ranges import PositiveInt
from effllm.pipelines.artifacts.arbitration import (
    Arbiters,
    ArbitrationPair,
    ArbitrationSpeeds,
    ArbitrationVerdicts,
)
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class BenchArbitration(Stage):
    """Decode the same test problems with every arm, in an order that turns with every problem.

    Verdicts that ship no policy are those of the target: exact speculation stands for them.

    Args:
        problems: first so many test problems.
    """

    INPUTS: ClassVar = {
        "pair": ArbitrationPair,
        "verdicts": ArbitrationVerdicts,
        "arbiters": Many(Arbiters),
    }
    OUTPUT: ClassVar = ArbitrationSpeeds
    TIMED: ClassVar = True

    problems: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """`speeds.jsonl`: tokens after the first and seconds, a row per problem and arm."""
        from effllm.modules.arbitration.decoder import arbitrated_session, rival_sessions
        from effllm.modules.arbitration.stepping import ModelStepper
        from effllm.modules.inference.fast_path import speed_up
        from effllm.modules.timing import taking_turns

        artifact, verdicts = (
            ctx.input("pair", ArbitrationPair),
            ctx.input("verdicts", ArbitrationVerdicts),
        )
        pair, shipped = artifact.load(), verdicts.shipped
        for stepper in (pair.target, pair.draft):
            assert isinstance(stepper, ModelStepper)
            path = speed_up(stepper.model)
        sessions = rival_sessions(pair)
        for arbiters in ctx.input_list("arbiters", Arbiters):
            if arbiters.rule == shipped.rule:
                policy = arbiters.policies()[shipped.seed]
                sessions["cospec"] = arbitrated_session(pair, policy, shipped.threshold)
        problems = artifact.problems("test")[: self.problems]
        rows: list[dict[str, Any]] = []
        for session in sessions.values():
            session.decode(problems[0].prompt, pair.budget)  # warm-up, not recorded
        for number, problem in enumerate(problems):
            for name in taking_turns(list(sessions), number):
                text = sessions[name].decode(problem.prompt, pair.budget)
                output = [token for token in text.tokens if token != pair.end]
                rows.append(
                    {
                        "set": name,
                        "id": problem.id,
                        "correct": problem.right(output),
                        "tokens": len(text.tokens) - 1,  # the first comes with the prompt
                        "seconds": text.decode_seconds,
                        "decide_seconds": sum(one.decide_seconds for one in text.rounds),
                    }
                )
            ctx.progress(number + 1, len(problems), "problem")
        ArbitrationSpeeds.write(ctx.workdir, rows)
        speeds = {}
        for name in sessions:
            mine = [row for row in rows if row["set"] == name]
            seconds = sum(row["seconds"] for row in mine)
            speeds[f"{name}/tokens_per_second"] = sum(row["tokens"] for row in mine) / seconds
        return {**speeds, "path": str(path)}
