"""Decode the same prompts with every method, in turn, and record speed and quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import Dtype, PositiveInt, Seed
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Prompts
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.files import write_json, write_rows
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext
from effllm.pipelines.stages.decoding.loading import (
    DecodingArm,
    DecodingModels,
    LibraryArm,
    describe_arm,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        models = DecodingModels.load(ctx, self.dtype, fast=self.fast)
        checkpoint, tokenizer = models.checkpoint, models.tokenizer
        stock = self._stock(ctx, models)
        arms = {
            name: _Arm(arm, stock if "library" in arm else models, self.max_new_tokens, self.seed)
            for name, arm in self.arms.items()
        }
        prompts = ctx.input("prompts", Prompts).prompts()
        encoded = [models.encode(one.text, chat=one.chat) for one in prompts]
        rows = ctx.load_rows()
        done = len({row["id"] for row in rows})
        for arm in arms.values():
            arm.decode(encoded[0], budget=8)  # warm-up, not recorded
        names = list(arms)
        for number in range(done, len(prompts)):
            turn = number % len(names)
            found = {}
            for name in [*names[turn:], *names[:turn]]:
                found[name] = arms[name].decode(encoded[number])
            fresh = _describe(found, prompts[number], encoded[number], models.target, tokenizer)
            rows += fresh
            ctx.save_rows(rows)
            ctx.progress(number + 1, len(prompts), "prompt")
        write_rows(ctx.workdir / "predictions.jsonl", rows)
        write_json(
            ctx.workdir / "subject.json",
            {"checkpoint": checkpoint.label, "history": checkpoint.history},
        )
        described = {name: arm.described for name, arm in arms.items()}
        write_json(ctx.workdir / "arms.json", described)
        speeds = {}
        for name in names:
            mine = [row for row in rows if row["set"] == name]
            speeds[f"{name}/tokens_per_second"] = sum(row["tokens"] for row in mine) / sum(
                row["seconds"] for row in mine
            )
        return {**speeds, "prompts": len(prompts), **models.path_metrics()}

    def _stock(self, ctx: StageContext, models: DecodingModels) -> DecodingModels:
        """The models as they are, for transformers' own decoding; its drafts have whole heads."""
        if not any("library" in arm for arm in self.arms.values()):
            return models
        target = models.checkpoint.load_model(self.dtype, ctx.device, ctx.device_map)
        assisted = any(arm.get("library") == "assisted" for arm in self.arms.values())
        drafts = ctx.input_list("drafts", Checkpoint) if assisted else []
        return dataclasses.replace(
            models,
            target=target,
            drafts=[one.load_model(self.dtype, ctx.device) for one in drafts],
            fast_paths=[],
        )


class _Arm:
    """One way to decode."""

    def __init__(
        self, arm: Mapping[str, Any], models: DecodingModels, max_new_tokens: int, seed: int
    ) -> None:
        from effllm.modules.decoding.joining import end_tokens

        self.model, self.ends = models.target, end_tokens(models.target, models.tokenizer)
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.library: Any = arm.get("library")
        self.drafted = int(arm.get("drafted", 8))
        self.draft = models.draft(arm)
        self.session = models.session(arm) if self.library is None else None
        lossless = self.session is None or self.session.verifier.lossless
        drafter = models.trained_heads(arm) or self.draft
        self.described = describe_arm(arm, models.target, drafter, lossless=lossless)

    def decode(self, prompt: list[int], budget: int | None = None) -> dict[str, Any]:
        """Tokens, seconds, and, for our own arms, what the rounds did."""
        wanted = self.max_new_tokens if budget is None else budget
        if self.session is None:
            from effllm.modules.decoding.library import generate

            tokens, seconds = generate(
                self.model,
                prompt,
                wanted,
                self.ends,
                kind=self.library,
                drafted=self.drafted,
                draft=self.draft,
            )
            return {"output": tokens, "seconds": seconds}
        found = self.session.measure(prompt, wanted, seed=self.seed)
        rounds = found.rounds
        return {
            "output": found.tokens,
            "seconds": found.prefill_seconds + found.decode_seconds,
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
    prompt: Any,
    encoded: list[int],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
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
            likelihoods[key] = continuation_nll(model, encoded, output)
        text = tokenizer.decode(output, skip_special_tokens=True)
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
