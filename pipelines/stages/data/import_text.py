"""Bring text into the store, dealt into splits that share no document."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.errors import ConfigError, DataError
from effllm.modules.ranges import NonEmpty, Word
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.data import Corpus
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.data.texts import FileText, HubText, SyntheticText, WikipediaWheel

MOST_SHARED = 0.05  # of a text's characters, with the text of another split


@dataclass(frozen=True, kw_only=True)
class ImportText(Stage):
    """Read documents from a source.

    Args:
        source: where the text comes from.
        splits: splits to read, of train, calibration, heldout and test.
    """

    OUTPUT: ClassVar = Corpus
    # Where a local file is, and how it is read: `identity` says of both what matters.
    VOLATILE: ClassVar = frozenset(
        {"source.path", "source.format", "source.encoding", "source.test_sha256"}
    )
    SOURCES: ClassVar = ("source",)

    source: "WikipediaWheel | HubText | FileText | SyntheticText"
    splits: NonEmpty[Word]

    def __post_init__(self) -> None:
        from effllm.modules.data.texts import SPLITS

        if (
            not self.splits
            or len(set(self.splits)) < len(self.splits)
            or set(self.splits) - {*SPLITS}
        ):
            raise ConfigError(f"splits: expected some of {', '.join(SPLITS)}, found {self.splits}")

    @classmethod
    def check_together(cls, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuse one file as test text and as calibration text, which would spoil the test.

        Splits of one deal share no document; a local file is dealt by each instance on its own.
        """
        files = {name: _file_of(config["source"]) for name, config in configs.items()}
        for (first, one), (second, other) in combinations(configs.items(), 2):
            if files[first] is None or files[first] != files[second]:
                continue
            one_deal = one["source"].get("path") is None and one["source"] == other["source"]
            if not one_deal and sorted(one["splits"]) != sorted(other["splits"]):
                file = one["source"].get("path") or files[first]
                raise ConfigError(
                    f"{first} ({', '.join(one['splits'])}) and {second} "
                    f"({', '.join(other['splits'])}) deal the same file {file} on their own: test "
                    "text could also be calibration text; give them different files, or equal "
                    "settings"
                )

    @classmethod
    def check_results(
        cls, results: Mapping[str, Callable[[], Artifact]], warn: Callable[[str], None]
    ) -> None:
        """Refuse texts of different splits that have much in common; warn if it is little."""
        from effllm.modules.data.texts import SPLITS, shared_text, telling_lines

        lines = {
            (SPLITS.index(split), name): telling_lines(corpus.documents(split))
            for name, opened in results.items()
            if isinstance(corpus := opened(), Corpus)
            for split in corpus.info["splits"]
        }
        # The later a split stands in `SPLITS`, the more rests on it.
        for (other, where), (judged, name) in combinations(sorted(lines), 2):
            share = shared_text(lines[judged, name], lines[other, where])
            if judged == other or not share:
                continue
            found = (
                f"{share:.2%} of the {SPLITS[judged]} text of {name} stand word for word in the "
                f"{SPLITS[other]} text of {where}"
            )
            if share > MOST_SHARED:
                raise DataError(f"{found}: figures on it would mean nothing; give other text")
            warn(found)

    def run(self, ctx: StageContext) -> Metrics:
        """One JSONL file per split."""
        documents = self.source.documents(self.splits)
        name = self.source.identity()["name"]  # the file's own where it is not the set's
        metrics: Metrics = {}
        for split, found in documents.items():
            if not any(document.text.strip() for document in found):
                raise DataError(f"data {name}: the {split} split is empty")
            metrics[f"{split}/documents"] = len(found)
            metrics[f"{split}/characters"] = sum(len(document.text) for document in found)
        Corpus.write(ctx.workdir, documents, name, self.source.joiner)
        return metrics


def _file_of(source: Mapping[str, Any]) -> str | None:
    """What tells files apart: the content of a local one, the name of one in a package."""
    from effllm.modules.data.files import LocalFile

    if source.get("path") is None:
        return source.get("filename")
    return LocalFile(path=source["path"], format=None, encoding="utf-8", label="data").sha256
