"""Decode the same prompts with every method, in turn, and record speed and quality."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import Dtype, PositiveInt, Seed
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Prompts
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.files import write_json
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext
from effllm.pipelines.stages.decoding.loading import DecodingArm, DecodingModels, LibraryArm

if TYPE_CHECKING:
    from effllm.modules.data.prompts import Prompt
    from effllm.modules.decoding.library import LibrarySession
    from effllm.modules.decoding.records import Generation
    from effllm.modules.decoding.session import Session


@dataclass(frozen=True, kw_only=True)
class DecodeBench(Stage):
    """All arms on all prompts, in an order that turns with every prompt.

    An arm is `{library: plain | lookup | assisted, drafted}` for transformers' own decoding, or
    `{proposer, verifier}` for ours; see `stages.decoding.loading` for the `draft` of either.

    Args:
        arms: name -> arm; `plain` is what speeds are compared with.
        max_new_tokens: budget per prompt.
        dtype: of all models.
        fast: take the fastest path of this machine for our arms; transformers' arms never do.
        seed: of all draws.
    """

    VERSION: ClassVar[int] = 2  # 2: arms.json describes arms; more times and repeats in the rows
    INPUTS: ClassVar = {
        "model": Checkpoint,
        "prompts": Prompts,
        "drafts": Many(Checkpoint, ordered=True),
    }
    OUTPUT: ClassVar = Predictions
    TIMED: ClassVar = True

    arms: dict[str, DecodingArm | LibraryArm]
    max_new_tokens: PositiveInt
    dtype: Dtype
    fast: bool
    seed: Seed

    def __post_init__(self) -> None:
        if "plain" not in self.arms:
            raise ConfigError("decode_bench: speeds are compared with an arm named plain")

    def run(self, ctx: StageContext) -> Metrics:
        """`predictions.jsonl`: one row per prompt and arm; `arms.json`: what each arm is."""
        from effllm.modules.timing import taking_turns

        models = DecodingModels.load(ctx, self.dtype, fast=self.fast)
        libraries = any("library" in arm for arm in self.arms.values())
        stock = models.stock(ctx, self.dtype) if libraries else models
        sessions: dict[str, Session | LibrarySession] = {}
        described = {}
        for name, arm in self.arms.items():
            mine = stock if "library" in arm else models
            decoder = mine.library(arm) if "library" in arm else mine.decoder(arm)
            sessions[name] = decoder.join(mine.target, mine.tokenizer)
            described[name] = decoder.about(mine.target)
        prompts = ctx.input("prompts", Prompts).prompts()
        encoded = [models.encode(prompt.text, chat=prompt.chat) for prompt in prompts]
        rows = ctx.load_rows()
        done = len({row["id"] for row in rows})
        for session in sessions.values():
            session.decode(encoded[0], 8, seed=self.seed)  # warm-up, not recorded
        names = list(sessions)
        for number in range(done, len(prompts)):
            found = {}
            for name in taking_turns(names, number):
                session = sessions[name]
                text = session.decode(encoded[number], self.max_new_tokens, seed=self.seed)
                found[name] = _figures(text)
            rows += _describe(found, prompts[number], encoded[number], models)
            ctx.save_rows(rows)
            ctx.progress(number + 1, len(prompts), "prompt")
        Predictions.write(ctx.workdir, rows, models.checkpoint)
        write_json(ctx.workdir / "arms.json", described)
        speeds = {}
        for name in names:
            decoded = [row for row in rows if row["set"] == name]
            seconds = sum(row["seconds"] for row in decoded)
            speeds[f"{name}/tokens_per_second"] = sum(row["tokens"] for row in decoded) / seconds
        return {**speeds, "prompts": len(prompts), **models.path_metrics()}


def _figures(found: Generation) -> dict[str, Any]:
    """Tokens, seconds, and, for our own decoders, what the rounds did."""
    whole = {"output": found.tokens, "seconds": found.seconds}
    if found.prefill_seconds is None:
        return whole
    rounds = found.rounds
    return whole | {
        "prefill_seconds": found.prefill_seconds,
        "rounds": len(rounds),
        "drafted": sum(one.drafted for one in rounds),
        "accepted": sum(one.accepted for one in rounds),
        "emitted": sum(one.emitted for one in rounds),
        "loosened": sum(one.loosened for one in rounds),
        "draft_passes": sum(one.draft_passes for one in rounds),
        "decode_seconds": found.decode_seconds,
        "draft_seconds": sum(one.draft_seconds for one in rounds),
        "verify_seconds": sum(one.verify_seconds for one in rounds),
        "host_seconds": sum(one.decide_seconds + one.commit_seconds for one in rounds),
        "accepted_counts": [one.accepted for one in rounds],
        "events": [
            {"prefix": one.prefix, **asdict(event)} for one in rounds for event in one.events
        ],
    }


def _describe(
    found: dict[str, dict[str, Any]],
    prompt: Prompt,
    encoded: list[int],
    models: DecodingModels,
) -> list[dict[str, Any]]:
    """Rows of one prompt; equal outputs are judged once."""
    from effllm.modules.evaluation.generations import (
        continuation_nll,
        distinct_share,
        first_difference,
        longest_repeat,
    )

    plain = found["plain"]["output"]
    likelihoods: dict[tuple[int, ...], float] = {}
    rows = []
    for name, one in found.items():
        output = one.pop("output")
        key = tuple(output)
        if output and key not in likelihoods:
            likelihoods[key] = continuation_nll(models.target, encoded, output)
        text = str(models.tokenizer.decode(output, skip_special_tokens=True))
        rows.append(
            {
                "set": name,
                "id": prompt.id,
                "group": prompt.group,
                "prompt_tokens": len(encoded),
                "tokens": len(output),
                "nll": likelihoods.get(key),
                "distinct": distinct_share(output),
                "longest_repeat": longest_repeat(output),
                "first_difference": first_difference(plain, output),
                "correct": prompt.judge(text),
                "output": output,
                "text": text,
                **one,
            }
        )
    return rows
