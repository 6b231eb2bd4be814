"""Draft at every position of the target's own text and keep the blocks whole, to be replayed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from effllm.modules.ranges import Dtype, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Prompts
from effllm.pipelines.artifacts.decoding import Blocks
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext
from effllm.pipelines.stages.decoding.loading import DecodingModels, ProposingArm


@dataclass(frozen=True, kw_only=True)
class RecordBlocks(Stage):
    """Decode at temperature 0, a token at a time, with a draft of each arm at each position.

    Args:
        arms: name -> `{proposer, draft}`, as in the benchmark; chains only. With a large K,
            smaller ones can be tried on the same blocks.
        max_new_tokens: budget per prompt.
        dtype: of all models.
        fast: take the fastest path of this machine.
    """

    INPUTS: ClassVar = {
        "model": Checkpoint,
        "prompts": Prompts,
        "drafts": Many(Checkpoint, ordered=True),
    }
    OUTPUT: ClassVar = Blocks

    arms: dict[str, ProposingArm]
    max_new_tokens: PositiveInt
    dtype: Dtype
    fast: bool

    def run(self, ctx: StageContext) -> Metrics:
        """`blocks.jsonl`: `{arm, id, block}` per position; `arms.json`: what each arm is."""
        from effllm.modules.decoding.recording import Recorder

        models = DecodingModels.load(ctx, self.dtype, fast=self.fast)
        decoders = {
            name: models.decoder({**arm, "verifier": Recorder()}) for name, arm in self.arms.items()
        }
        sessions = {
            name: decoder.join(models.target, models.tokenizer)
            for name, decoder in decoders.items()
        }
        prompts = ctx.input("prompts", Prompts).prompts()
        rows = ctx.load_rows()
        done = {(row["arm"], row["id"]) for row in rows}
        for number, prompt in enumerate(prompts):
            encoded = models.encode(prompt.text, chat=prompt.chat)
            for name, session in sessions.items():
                if (name, prompt.id) in done:
                    continue
                session.decode(encoded, self.max_new_tokens)
                assert isinstance(session.verifier, Recorder)
                rows += [
                    {"arm": name, "id": prompt.id, "block": asdict(block)}
                    for block in session.verifier.take()
                ]
            ctx.save_rows(rows)
            ctx.progress(number + 1, len(prompts), "prompt")
        described = {
            name: {**decoder.about(models.target), "verifier": None}
            for name, decoder in decoders.items()
        }
        Blocks.write(ctx.workdir, rows, described)
        counts = {name: sum(row["arm"] == name for row in rows) for name in sessions}
        return {f"{name}/blocks": count for name, count in counts.items()}
