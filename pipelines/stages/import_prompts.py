"""Bring a published or procedural prompt set into the store."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from effllm.modules.errors import ConfigError, DataError
from effllm.pipelines.artifacts import Prompts
from effllm.pipelines.files import write_rows
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
    per_group: int
    seed: int

    def __post_init__(self) -> None:
        if self.per_group < 1:
            raise ConfigError(f"per_group must be at least 1, found {self.per_group}")

    def run(self, ctx: StageContext) -> Metrics:
        """`prompts.jsonl`."""
        prompts = self.source.prompts(self.per_group, self.seed)
        if not prompts:
            raise DataError(f"prompts {self.source.name}: the set is empty")
        write_rows(ctx.workdir / "prompts.jsonl", (asdict(prompt) for prompt in prompts))
        counts = Counter(prompt.group for prompt in prompts)
        return {"prompts": len(prompts), **{f"{name}/prompts": n for name, n in counts.items()}}
