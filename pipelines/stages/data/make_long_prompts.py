"""Long prompts with checkable answers from the articles of one split."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.ranges import NonEmpty, PositiveInt, Seed, Word
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Corpus, LongPrompts
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class MakeLongPrompts(Stage):
    """Find, follow, count and quote, at several lengths.

    Args:
        split: split of the text.
        tasks: kinds of prompts.
        lengths: most tokens of a prompt.
        per_task: prompts of each kind at each length.
        seed: of all draws.
    """

    INPUTS: ClassVar = {"text": Corpus, "model": Checkpoint}
    OUTPUT: ClassVar = LongPrompts

    split: Word
    tasks: NonEmpty[str]
    lengths: NonEmpty[PositiveInt]
    per_task: PositiveInt
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`prompts.jsonl`."""
        from effllm.modules.data.long_prompts import long_prompts

        model = ctx.input("model", Checkpoint)
        model.require_context(max(self.lengths), "lengths")
        tokenizer = model.load_tokenizer()
        tokenizer.model_max_length = 10**9  # lengths are ours to watch: no warnings
        prompts = long_prompts(
            ctx.input("text", Corpus).documents(self.split),
            lambda text: len(tokenizer(text)["input_ids"]),
            tasks=list(self.tasks),
            lengths=list(self.lengths),
            per_task=self.per_task,
            seed=self.seed,
        )
        LongPrompts.write(ctx.workdir, prompts)
        return {"prompts": len(prompts)}
