"""Make the lm-evaluation-harness tasks of our own: YAML files beside JSONL items."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import NonEmpty, PositiveInt, Seed, Word
from effllm.pipelines.artifacts.data import Corpus, Tasks
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.data.texts import Document
    from effllm.modules.evaluation.tasks import Item

# `{items}` is filled in when the task is run: the folder moves when it is published.
_COMMON = """\
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{{items}}"}}
  cache_dir: "{{cache}}"
test_split: test
doc_to_text: "{{{{context}}}}"
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
task: {name}
"""
_LASTWORD = _COMMON + 'output_type: loglikelihood\ndoc_to_target: "{{{{target}}}}"\n'
_CONTINUATION = _COMMON + (
    'output_type: multiple_choice\ntarget_delimiter: ""\n'
    "doc_to_choice: choices\ndoc_to_target: label\n"
)
# The first number that is written counts; a decoder may still say more than that.
_RECALL = _COMMON + (
    'output_type: generate_until\ndoc_to_target: "{{{{target}}}}"\n'
    'generation_kwargs: {{until: ["\\n"], max_gen_toks: 24, do_sample: false}}\n'
    "filter_list:\n"
    "  - name: none\n"
    "    filter: [{{function: regex, regex_pattern: '(\\d+)'}}, {{function: take_first}}]\n"
)
_TASKS = {
    "lastword": (_LASTWORD, "acc"),
    "continuation": (_CONTINUATION, "acc"),
    "recall": (_RECALL, "exact_match"),
}


@dataclass(frozen=True, kw_only=True)
class BuildTasks(Stage):
    """Predict the last word; choose the true continuation out of four; write a listed number.

    Args:
        kinds: of lastword, continuation and recall; recall is decoded, see EvaluateGeneration.
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
    DIGEST_DEFAULTS: ClassVar = {"kinds": ["lastword", "continuation"]}

    kinds: NonEmpty[str]
    split: Word
    items: PositiveInt
    lastword_min_words: PositiveInt
    lastword_max_words: PositiveInt
    context_words: PositiveInt
    choice_words: PositiveInt
    seed: Seed

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - set(_TASKS))
        if unknown or not self.kinds:
            raise ConfigError(f"kinds: expected some of {', '.join(_TASKS)}, found {self.kinds}")

    def run(self, ctx: StageContext) -> Metrics:
        """`<corpus>_<kind>` for every kind."""
        corpus = ctx.input("text", Corpus)
        documents = corpus.documents(self.split)
        tasks = {}
        for kind in self.kinds:
            # Names of texts are free (`owner/set`); tasks are files and words of the harness.
            name = re.sub(r"[^\w.-]+", "-", f"{corpus.info['name']}_{kind}").lstrip(".-")
            template, metric = _TASKS[kind]
            text = template.format(name=name, metric=metric)
            tasks[name] = text, self._items(kind, documents)
        Tasks.write(ctx.workdir, tasks)
        return {"items": self.items}

    def _items(self, kind: str, documents: "list[Document]") -> "list[Item]":
        from effllm.modules.evaluation.tasks import continuation_items, lastword_items, recall_items

        if kind == "lastword":
            return lastword_items(
                documents,
                count=self.items,
                min_words=self.lastword_min_words,
                max_words=self.lastword_max_words,
                seed=self.seed,
            )
        if kind == "continuation":
            return continuation_items(
                documents,
                count=self.items,
                context_words=self.context_words,
                choice_words=self.choice_words,
                seed=self.seed,
            )
        return recall_items(count=self.items, seed=self.seed)
