"""Time several models on the same passes in one process, taking turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.ranges import Dtype, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.measured import Speeds
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.inference.runner import ModelRunner


@dataclass(frozen=True, kw_only=True)
class MeasureSpeed(Stage):
    """Seconds to the first token of a prompt, and of decoding after it.

    Args:
        prompt_tokens: length of the prompts.
        new_tokens: decoded after each.
        repeats: rounds in which every model takes its turn; one more warms up.
        dtype: of all models.
        fast: take the fastest path of this machine, the same for all models.
    """

    INPUTS: ClassVar = {"dense": Checkpoint, "models": Many(Checkpoint), "windows": Windows}
    OUTPUT: ClassVar = Speeds
    TIMED: ClassVar = True

    prompt_tokens: PositiveInt
    new_tokens: PositiveInt
    repeats: PositiveInt
    dtype: Dtype
    fast: bool

    def run(self, ctx: StageContext) -> Metrics:
        """`speeds.jsonl`: one row per model and round; `models.json`: their histories."""
        from effllm.modules.inference.fast_path import speed_up
        from effllm.modules.inference.runner import ModelRunner
        from effllm.modules.timing import taking_turns

        dense = ctx.input("dense", Checkpoint)
        dense.require_context(self.prompt_tokens + self.new_tokens, "prompt_tokens + new_tokens")
        checkpoints = {one.label: one for one in (dense, *ctx.input_list("models", Checkpoint))}
        runners, paths = {}, {}
        for label, one in checkpoints.items():
            model = one.load_model(self.dtype, ctx.device)
            paths[label] = str(speed_up(model)) if self.fast else "not wanted"
            runners[label] = ModelRunner(model)
        text = ctx.input("windows", Windows).token_ids().flatten().tolist()
        rows = ctx.load_rows()
        labels = list(runners)
        if rows:  # a new process is cold again
            for runner in runners.values():
                self._measure(runner, text[: self.prompt_tokens])
        for number in range(len(rows) // len(labels), self.repeats + 1):
            # The text goes round where it is too short for a prompt of its own each time.
            start = number * self.prompt_tokens
            prompt = [text[(start + i) % len(text)] for i in range(self.prompt_tokens)]
            rows += [
                {"set": label, "id": number, **self._measure(runners[label], prompt)}
                for label in taking_turns(labels, number)
            ]
            ctx.save_rows(rows)
            ctx.progress(number, self.repeats, "round")
        rows = [row for row in rows if row["id"]]  # the first round warms up
        Speeds.write(ctx.workdir, rows, dense, checkpoints.values())
        taken = ", ".join(sorted(set(paths.values())))
        return {"models": len(labels), "fast_paths": taken, "rounds": self.repeats}

    def _measure(self, runner: ModelRunner, prompt: list[int]) -> dict[str, Any]:
        """Prefill and greedy decoding of one prompt; a pruned model may do nothing but repeat."""
        from effllm.modules.evaluation.generations import distinct_share, longest_repeat
        from effllm.modules.inference.choice import best_tokens
        from effllm.modules.timing import now

        runner.reset()
        device = runner.model.device
        started = now(device)
        token = best_tokens(runner.advance(prompt, rows=1))[0]
        first = now(device)
        written = [token]
        for _ in range(self.new_tokens):
            written += best_tokens(runner.advance([written[-1]]))
        done = now(device)
        runner.reset()
        return {
            "distinct": distinct_share(written),
            "longest_repeat": longest_repeat(written),
            "prefill_seconds": first - started,
            "decode_seconds": done - first,
            "tokens": self.new_tokens,
        }
