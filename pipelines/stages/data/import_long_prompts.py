"""Bring a published long-context benchmark into the store."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from effllm.modules.errors import DataError
from effllm.modules.ranges import PositiveInt, Seed
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import LongPrompts
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.data.long_prompt_sources import LongQuestions


@dataclass(frozen=True, kw_only=True)
class ImportLongPrompts(Stage):
    """Draw prompts that the model can read.

    Args:
        source: where the prompts come from.
        longest: most tokens of a prompt with its answers; longer ones are left out and counted.
        per_task: most prompts of each task, before long ones are left out.
        seed: of the draw.
    """

    INPUTS: ClassVar = {"model": Checkpoint}
    OUTPUT: ClassVar = LongPrompts
    # Where a local file is, and how it is read: `identity` says of both what matters.
    VOLATILE: ClassVar = frozenset(
        {"source.path", "source.format", "source.encoding", "source.sha256"}
    )
    SOURCES: ClassVar = ("source",)

    source: "LongQuestions"
    longest: PositiveInt
    per_task: PositiveInt
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`prompts.jsonl`."""
        tokenizer = ctx.input("model", Checkpoint).load_tokenizer()
        tokenizer.model_max_length = 10**9  # lengths are ours to watch: no warnings
        drawn = self.source.prompts(self.per_task, self.seed)
        prompts = []
        for one in drawn:
            text = one.context + one.question + "".join(one.answers)
            length = len(tokenizer(text)["input_ids"])
            if length <= self.longest:
                prompts.append(replace(one, length=length))
        if not prompts:
            raise DataError(
                f"{self.source.label}: none of {len(drawn)} has at most {self.longest} "
                "tokens; raise `longest`, or take another set"
            )
        LongPrompts.write(ctx.workdir, prompts)
        counts = Counter(prompt.task for prompt in prompts)
        left_out = len(drawn) - len(prompts)
        numbers = {f"{name}/prompts": count for name, count in counts.items()}
        return {"prompts": len(prompts), "left_out": left_out, **numbers}
