"""Where text comes from: the Wikipedia articles in a wheel, a local file, or the hub.

A source yields documents per split. The four splits never share a document: `train` for trained
parts, `calibration` for statistics, `heldout` for choices, `test` for reported figures. `joiner`
is what stands between documents when a split is read as one long text.
"""

import bz2
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from effllm.modules.errors import DataError
from effllm.modules.hub import require_on_hub
from effllm.modules.ranges import NonNegativeInt, PositiveInt, Seed
from effllm.modules.wheels import PackagedFile

SPLITS = ("train", "calibration", "heldout", "test")
_REMEDY = (
    "check the name and the network, give a local file with data.path=…, or use the embedded "
    "data=enwiki"
)


@dataclass(frozen=True)
class Document:
    """One text with an id that is unique in its source."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class WikipediaWheel:
    """English Wikipedia articles that ship with the gensim wheel (CC BY-SA 3.0 / GFDL).

    Args:
        name: label of the corpus.
        filename: dump inside the installed `gensim` package; it is located, not copied.
        sha256: checksum of the dump.
        min_characters: shorter articles (disambiguation pages) are left out.
        shares: share of the text per split; articles are dealt whole.
        seed: of the deal.
        joiner: text between documents.
    """

    name: str
    filename: str
    sha256: str
    min_characters: NonNegativeInt
    shares: dict[str, float]
    seed: Seed
    joiner: str = "\n\n"

    def identity(self) -> dict[str, str]:
        """Name, file and declared checksum."""
        return {"name": self.name, "revision": self.filename, "sha256": self.sha256}

    def check(self) -> None:
        """Raise DataError, with the remedy, if the dump is missing."""
        self._dump.locate()

    def documents(self, splits: Iterable[str]) -> dict[str, list[Document]]:
        """Cleaned articles of the wanted splits.

        Raises:
            DataError: if the dump is missing or differs from what was declared.
        """
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki

        articles = []
        with bz2.open(self._dump.verified()) as dump:
            for title, markup, _ in extract_pages(dump, filter_namespaces=("0",)):
                if markup.lstrip().upper().startswith("#REDIRECT"):
                    continue
                text = clean_article(filter_wiki(markup))
                if len(text) >= self.min_characters:
                    articles.append(Document(title, text))
        dealt = deal(articles, self.shares, self.seed)
        return {split: dealt[split] for split in splits}

    @property
    def _dump(self) -> PackagedFile:
        filename = f"test/test_data/{self.filename}"
        return PackagedFile("gensim", filename, self.sha256, "gensim==4.4.0")


@dataclass(frozen=True, kw_only=True)
class HubText:
    """A text data set of the hub, or the same set in a local file.

    Args:
        name: `owner/name` on the hub.
        subset: configuration of the set, or None.
        revision: branch, tag or commit.
        files: split of ours -> file pattern on the hub; None to use the set's own splits.
        splits: split of ours -> split of the set.
        column: column that holds the text.
        max_documents: rows taken per split, from its start.
        joiner: text between documents.
        heading: regular expression of a row that begins a document; the rows up to the next one are
            joined to it. None: every row is a document.
        path: a local file instead of the hub: .jsonl (with `column`) or plain text, one row per
            line. It serves every split that is asked for; if several are, its documents are
            dealt out among them by `seed`.
        seed: of that deal.
    """

    name: str
    subset: str | None
    revision: str
    splits: dict[str, str]
    column: str
    max_documents: PositiveInt
    joiner: str
    files: dict[str, str] | None = None
    heading: str | None = None
    path: str | None = None
    seed: Seed = 0

    def identity(self) -> dict[str, str]:
        """Name and revision, or name and content of the local file.

        Raises:
            DataError: if the local file does not exist.
        """
        if self.path is None:
            return {"name": self.name, "revision": self.revision, "sha256": ""}
        self.check()
        return {"name": self.name, "revision": "local", "sha256": _file_digest(Path(self.path))}

    def check(self) -> None:
        """Raise DataError if the local file, or the set on the hub, is out of reach."""
        if self.path is None:
            require_on_hub(self.name, "dataset", self.revision, _REMEDY)
        elif not Path(self.path).is_file():
            raise DataError(f"data.path={self.path}: no such file")

    def documents(self, splits: Iterable[str]) -> dict[str, list[Document]]:
        """Documents of the wanted splits.

        Raises:
            DataError: if the set cannot be reached, or has no such split.
        """
        wanted = list(splits)
        if self.path is not None:
            rows = self._gather("row", self._read_rows(Path(self.path)))
            if len(wanted) == 1:
                return {wanted[0]: rows}
            return deal(rows, dict.fromkeys(wanted, 1 / len(wanted)), self.seed)
        return {split: self._fetch(split) for split in wanted}

    def _read_rows(self, path: Path) -> Iterator[str]:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if path.suffix != ".jsonl":
                    yield line if line.strip() else ""
                    continue
                try:
                    yield json.loads(line)[self.column]
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise DataError(
                        f"{path.name}, line {number}: expected a JSON object with {self.column!r}"
                    ) from error

    def _fetch(self, split: str) -> list[Document]:
        import datasets

        if split not in self.splits:
            raise DataError(
                f"data {self.name} has no {split} split; it has {', '.join(self.splits)}"
            )
        try:
            rows = datasets.load_dataset(
                self.name,
                self.subset,
                revision=self.revision,
                split=self.splits[split],
                data_files=None if self.files is None else {self.splits[split]: self.files[split]},
                streaming=True,
            )
            texts = [row[self.column] for row in rows.take(self.max_documents)]
        except Exception as error:  # its many kinds of failure have no common base
            raise DataError(
                f"data {self.name} could not be fetched ({type(error).__name__}); {_REMEDY}"
            ) from error
        return self._gather(split, texts)

    def _gather(self, label: str, rows: Iterable[str]) -> list[Document]:
        """Documents of rows."""
        texts: list[list[str]] = []
        for row in rows:
            if not texts or self.heading is None or re.match(self.heading, row):
                texts.append([])
            texts[-1].append(row)
        return [
            Document(f"{label}-{number}", self.joiner.join(text))
            for number, text in enumerate(texts)
        ]


@dataclass(frozen=True, kw_only=True)
class SyntheticText:
    """Sentences from a small random grammar; for smoke runs of tiny models only.

    Args:
        documents_per_split: number of documents in each split.
        sentences: sentences per document.
        seed: of the grammar's choices.
        joiner: text between documents.
    """

    documents_per_split: PositiveInt = 12
    sentences: PositiveInt = 40
    seed: Seed = 0
    joiner: str = "\n\n"
    name: str = field(default="synthetic", init=False)

    def identity(self) -> dict[str, str]:
        """Everything that determines the text."""
        shape = f"{self.documents_per_split}x{self.sentences}"
        return {"name": self.name, "revision": f"{shape}-seed{self.seed}", "sha256": ""}

    def check(self) -> None:
        """Nothing can be missing."""

    def documents(self, splits: Iterable[str]) -> dict[str, list[Document]]:
        """Random documents, different in every split."""
        return {
            split: [
                Document(f"{split}-{number}", self._text(f"{self.seed}/{split}/{number}"))
                for number in range(self.documents_per_split)
            ]
            for split in splits
        }

    def _text(self, key: str) -> str:
        random = Random(key)
        subjects = [
            "The river",
            "A teacher",
            "The old city",
            "Our garden",
            "The engine",
            "A sailor",
        ]
        verbs = ["crosses", "remembers", "follows", "builds", "carries", "describes"]
        things = ["the northern bridge", "a silent valley", "seven lanterns", "the morning train"]
        return " ".join(
            f"{random.choice(subjects)} {random.choice(verbs)} {random.choice(things)}."
            for _ in range(self.sentences)
        )


def deal(
    documents: list[Document], shares: dict[str, float], seed: int
) -> dict[str, list[Document]]:
    """Deal whole documents to splits until each has its share of the characters.

    Each document, in seeded order, goes to the split that lacks most of its share.
    """
    order = sorted(documents, key=lambda document: document.id)
    Random(seed).shuffle(order)
    total = sum(len(document.text) for document in order)
    dealt: dict[str, list[Document]] = {split: [] for split in shares}
    lacking = {split: share * total for split, share in shares.items()}
    for document in order:
        split = max(lacking, key=lambda name: lacking[name])
        dealt[split].append(document)
        lacking[split] -= len(document.text)
    return dealt


def clean_article(text: str) -> str:
    """Plain paragraphs from half-cleaned wiki text: no quotes marks, headings, lists or tables."""
    text = re.sub(r"'{2,}", "", text)
    text = re.sub(r"\(\s*[;,\u2013-]?\s*\)", "", text)  # brackets emptied by removed templates
    paragraphs = []
    for line in text.split("\n"):
        line = re.sub(r"\s+", " ", line).strip()
        line = re.sub(r"\s+([,.;:)])", r"\1", line)
        markup = line.startswith(("=", "*", "#", ":", ";", "|", "!", "{", "}", "["))
        if len(line) >= 40 and not markup and "|" not in line:
            paragraphs.append(line)
    return "\n".join(paragraphs)


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
