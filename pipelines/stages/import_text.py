"""Bring text into the store, dealt into splits that share no document."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.errors import ConfigError, DataError
from effllm.modules.ranges import NonEmpty, Word
from effllm.pipelines.artifacts import Corpus
from effllm.pipelines.files import write_json, write_rows
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.data.sources import HubText, SyntheticText, WikipediaWheel


@dataclass(frozen=True, kw_only=True)
class ImportText(Stage):
    """Read documents from a source.

    Args:
        source: where the text comes from.
        splits: splits to read, of train, calibration, heldout and test.
    """

    OUTPUT: ClassVar = Corpus
    VOLATILE: ClassVar = frozenset({"source.path"})
    SOURCES: ClassVar = ("source",)

    source: "WikipediaWheel | HubText | SyntheticText"
    splits: NonEmpty[Word]

    @classmethod
    def check_together(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse one file as test text and as calibration text, which would spoil the test.

        Splits of one deal share no document; a local file is dealt by each instance on its own.
        """
        for (first, one), (second, other) in combinations(configs.items(), 2):
            source = one["source"]
            local = source.get("path")
            file = local or source.get("filename")
            if file is None or file != (other["source"].get("path" if local else "filename")):
                continue
            one_deal = local is None and source == other["source"]
            if not one_deal and sorted(one["splits"]) != sorted(other["splits"]):
                raise ConfigError(
                    f"{first} ({', '.join(one['splits'])}) and {second} "
                    f"({', '.join(other['splits'])}) deal the same file {file} on their own: test "
                    "text could also be calibration text; give them different files, or equal "
                    "settings"
                )

    def run(self, ctx: StageContext) -> Metrics:
        """One JSONL file per split."""
        documents = self.source.documents(self.splits)
        metrics: Metrics = {}
        for split, found in documents.items():
            if not any(document.text.strip() for document in found):
                raise DataError(f"data {self.source.name}: the {split} split is empty")
            rows = ({"id": document.id, "text": document.text} for document in found)
            write_rows(ctx.workdir / f"{split}.jsonl", rows)
            metrics[f"{split}/documents"] = len(found)
            metrics[f"{split}/characters"] = sum(len(document.text) for document in found)
        write_json(
            ctx.workdir / "corpus.json",
            {"name": self.source.name, "joiner": self.source.joiner, "splits": self.splits},
        )
        return metrics
