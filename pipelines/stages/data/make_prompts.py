"""Prompts for decoding benchmarks from the articles of one split."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.ranges import PositiveInt, Seed, Word
from effllm.pipelines.artifacts.data import Corpus, Prompts
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class MakePrompts(Stage):
    """Continue, summarise, quote, recall.

    Args:
        split: split of the text.
        per_group: prompts of each kind.
        words: longest passage.
        seed: of the choice.
    """

    INPUTS: ClassVar = {"text": Corpus}
    OUTPUT: ClassVar = Prompts

    split: Word
    per_group: PositiveInt
    words: PositiveInt
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`prompts.jsonl`."""
        from effllm.modules.data.prompts import article_prompts

        documents = ctx.input("text", Corpus).documents(self.split)
        prompts = article_prompts(
            documents, per_group=self.per_group, words=self.words, seed=self.seed
        )
        Prompts.write(ctx.workdir, prompts)
        return {"prompts": len(prompts)}
