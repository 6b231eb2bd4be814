"""Make the lm-evaluation-harness tasks of our own: YAML files beside JSONL items."""

from dataclasses import dataclass
from typing import ClassVar

from effllm.pipelines.artifacts import Corpus, Tasks, write_json, write_rows
from effllm.pipelines.stage import Metrics, Stage, StageContext

# `{items}` is filled in when the task is run: the folder moves when it is published.
_COMMON = """\
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{{items}}"}}
  cache_dir: "{{cache}}"
test_split: test
doc_to_text: "{{{{context}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
task: {name}
"""
_LASTWORD = _COMMON + 'output_type: loglikelihood\ndoc_to_target: "{{{{target}}}}"\n'
_CONTINUATION = _COMMON + (
    'output_type: multiple_choice\ntarget_delimiter: ""\n'
    "doc_to_choice: choices\ndoc_to_target: label\n"
)


@dataclass(frozen=True, kw_only=True)
class BuildTasks(Stage):
    """Predict the last word; choose the true continuation out of four.

    Args:
        split: split of the text.
        items: items per task.
        lastword_min_words: shortest passage.
        lastword_max_words: longest passage.
        context_words: words before the choices.
        choice_words: words per choice.
        seed: of the draws.
    """

    INPUTS: ClassVar = {"text": Corpus}
    OUTPUT: ClassVar = Tasks

    split: str
    items: int
    lastword_min_words: int
    lastword_max_words: int
    context_words: int
    choice_words: int
    seed: int

    def run(self, ctx: StageContext) -> Metrics:
        """`<corpus>_lastword` and `<corpus>_continuation`."""
        from effllm.modules.evaluation.tasks import continuation_items, lastword_items

        corpus = ctx.input("text", Corpus)
        documents = corpus.documents(self.split)
        prefix = corpus.info["name"]
        lastword = lastword_items(
            documents,
            count=self.items,
            min_words=self.lastword_min_words,
            max_words=self.lastword_max_words,
            seed=self.seed,
        )
        continuation = continuation_items(
            documents,
            count=self.items,
            context_words=self.context_words,
            choice_words=self.choice_words,
            seed=self.seed,
        )
        names = [f"{prefix}_lastword", f"{prefix}_continuation"]
        for name, items, text in zip(
            names, (lastword, continuation), (_LASTWORD, _CONTINUATION), strict=True
        ):
            write_rows(ctx.workdir / f"{name}.jsonl", items)
            (ctx.workdir / f"{name}.yaml").write_text(text.format(name=name), encoding="utf-8")
        write_json(ctx.workdir / "tasks.json", {"names": names})
        return {"items": self.items}
