"""Bring a published or procedural prompt set into the store."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from effllm.modules.errors import DataError
from effllm.modules.ranges import PositiveInt, Seed
from effllm.pipelines.artifacts.data import Prompts
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.data.prompt_sources import HumanEvalWheel, ProceduralTasks, Questions


@dataclass(frozen=True, kw_only=True)
class ImportPrompts(Stage):
    """Draw prompts from a source.

    Args:
        source: where the prompts come from.
        per_group: most prompts of each group.
        seed: of the draw.
    """

    OUTPUT: ClassVar = Prompts
    # Where a local file is, and how it is read: `identity` says of both what matters.
    VOLATILE: ClassVar = frozenset(
        {"source.path", "source.format", "source.encoding", "source.sha256"}
    )
    SOURCES: ClassVar = ("source",)

    source: "HumanEvalWheel | Questions | ProceduralTasks"
    per_group: PositiveInt
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`prompts.jsonl`."""
        prompts = self.source.prompts(self.per_group, self.seed)
        if not prompts:
            raise DataError(f"prompts {self.source.name}: the set is empty")
        Prompts.write(ctx.workdir, prompts)
        counts = Counter(prompt.group for prompt in prompts)
        return {"prompts": len(prompts), **{f"{name}/prompts": n for name, n in counts.items()}}
