"""Draft at every position of the target's own text and keep the blocks whole, for sweeps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from effllm.pipelines.artifacts import Blocks, Checkpoint, Prompts, write_json, write_rows
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext
from effllm.pipelines.stages.arms import describe_arm

_ROWS = "rows.jsonl"


@dataclass(frozen=True, kw_only=True)
class RecordBlocks(Stage):
    """Decode at temperature 0, a token at a time, with a draft of each arm at each position.

    Args:
        arms: name -> `{proposer, draft}`, as in the benchmark; chains only. With a large K,
            smaller ones can be tried on the same blocks.
        max_new_tokens: budget per prompt.
        dtype: of all models.
        packed: pack the weights for the CPU.
    """

    INPUTS: ClassVar = {"model": Checkpoint, "prompts": Prompts, "drafts": Many(Checkpoint)}
    OUTPUT: ClassVar = Blocks

    arms: dict[str, Any]
    max_new_tokens: int
    dtype: str
    packed: bool

    def run(self, ctx: StageContext) -> Metrics:
        """`blocks.jsonl`: `{arm, id, block}` per position; `arms.json`: what each arm is."""
        from effllm.modules.decoding.packed import pack_linears
        from effllm.modules.decoding.recording import Recorder
        from effllm.pipelines.generate import encode_prompt, join_session, pick_draft

        checkpoint = ctx.input("model", Checkpoint)
        model = checkpoint.load_model(self.dtype, ctx.device)
        tokenizer = checkpoint.load_tokenizer()
        drafts = [
            one.load_draft(self.dtype, ctx.device) for one in ctx.input_list("drafts", Checkpoint)
        ]
        if self.packed:
            for one in (model, *drafts):
                pack_linears(one)
        protected = frozenset(tokenizer.all_special_ids)
        sessions, described = {}, {}
        for name, arm in self.arms.items():
            draft = pick_draft(arm.get("draft"), model, drafts)
            sessions[name] = join_session(
                arm["proposer"], Recorder(), model, tokenizer, draft, text=False
            )
            described[name] = describe_arm(arm, model, draft, lossless=True)
        prompts = ctx.input("prompts", Prompts).prompts()
        stored = ctx.progress_dir / _ROWS
        rows: list[dict[str, Any]] = []
        if stored.is_file():
            rows = [json.loads(line) for line in stored.read_text().splitlines()]
        done = {(row["arm"], row["id"]) for row in rows}
        for number, prompt in enumerate(prompts):
            encoded = encode_prompt(tokenizer, prompt.text, chat=prompt.chat)
            for name, session in sessions.items():
                if (name, prompt.id) in done:
                    continue
                session.verifier = recorder = Recorder(protected=protected, ends=session.ends)
                if session.generate(encoded, self.max_new_tokens).stop == "interrupted":
                    raise KeyboardInterrupt
                rows += [
                    {"arm": name, "id": prompt.id, "block": asdict(block)}
                    for block in recorder.blocks
                ]
            partial = stored.with_suffix(".partial")
            write_rows(partial, rows)
            partial.replace(stored)
            ctx.progress(number + 1, len(prompts), "prompt")
        write_rows(ctx.workdir / "blocks.jsonl", rows)
        write_json(ctx.workdir / "arms.json", described)
        counts = {name: sum(row["arm"] == name for row in rows) for name in sessions}
        return {f"{name}/blocks": count for name, count in counts.items()}
