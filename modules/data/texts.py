"""Where text comes from: the Wikipedia articles in a wheel, a local file, or the hub.

A source yields documents per split. The four splits never share a document: `train` for trained
parts, `calibration` for statistics, `heldout` for choices, `test` for reported figures. `joiner`
is what stands between documents when a split is read as one long text.
"""

import bz2
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random

from effllm.modules.data.files import LOOKED_AT, LocalFile
from effllm.modules.errors import ConfigError, DataError
from effllm.modules.hub import require_on_hub, resolved_commit
from effllm.modules.ranges import NonNegativeInt, PositiveInt, Seed
from effllm.modules.wheels import PackagedFile

SPLITS = ("train", "calibration", "heldout", "test")
_TELLING = 80  # characters of a line that two texts do not share by chance
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
        wanted = list(splits)
        refuse_unknown_splits(self.name, wanted, self.shares)
        dealt = deal(articles, self.shares, self.seed)
        return {split: dealt[split] for split in wanted}

    @property
    def _dump(self) -> PackagedFile:
        filename = f"test/test_data/{self.filename}"
        return PackagedFile("gensim", filename, self.sha256, "gensim==4.4.0")


@dataclass(frozen=True, kw_only=True)
class FileText:
    """Text in a local file.

    It serves every split that is asked for; if several are, its documents are dealt out among them.

    Args:
        path: the file.
        name: of the text in metrics and reports; None: the file's name.
        format: text (a row per line), json_lines, json (a list) or parquet, each also in gzip;
            None: as the file's name says.
        encoding: of text and JSON.
        column: that holds the text; a plain text has none.
        heading: regular expression of a row that begins a document; the rows up to the next one are
            joined to it. None: every row is a document.
        joiner: text between rows and documents; a line break leaves a plain text as it is.
        seed: of the deal.
    """

    path: str
    name: str | None = None
    format: str | None = None
    encoding: str = "utf-8"
    column: str = "text"
    heading: str | None = None
    joiner: str = "\n"
    seed: int = 0

    def __post_init__(self) -> None:
        compiled(self.heading)
        if not (isinstance(self.called, str) and self.called.isprintable() and self.called.strip()):
            raise ConfigError(
                f"data: {self.called!r} is no name for metrics and reports; give another with name="
            )

    @property
    def called(self) -> str:
        """The text in metrics and reports."""
        return self.file.name if self.name is None else self.name

    @property
    def file(self) -> LocalFile:
        """The file and how it is read."""
        return LocalFile(path=self.path, format=self.format, encoding=self.encoding, label="data")

    def identity(self) -> dict[str, str]:
        """Name, way of reading, and content.

        Raises:
            DataError: if the file is missing, or one of its first rows is not as it should be.
        """
        self.rows(LOOKED_AT)
        return {"name": self.called, "revision": self.file.way, "sha256": self.file.sha256}

    def check(self) -> None:
        """Raise DataError at the first row that is not as it should be, or if there is no text."""
        self.rows()

    def documents(self, splits: Iterable[str]) -> dict[str, list[Document]]:
        """Documents of the wanted splits.

        Raises:
            DataError: at the first row that is not as it should be, or if they are too few.
        """
        return self.deal_rows(self.rows(), list(splits))

    def rows(self, most: int | None = None) -> list[str]:
        """The first rows, or all.

        Raises:
            DataError: at the first row that is not as it should be, or if there is no text.
        """
        rows = list(islice(self.file.texts(self.column), most))
        if not any(row.strip() for row in rows) and (most is None or len(rows) < most):
            raise self.file.refusal("holds no text")
        return rows

    def deal_rows(self, rows: Iterable[str], splits: list[str]) -> dict[str, list[Document]]:
        """Documents of rows, dealt out where several splits are wanted.

        Raises:
            DataError: if a split gets none.
        """
        documents = gather("row", rows, self.heading, self.joiner)
        if len(splits) == 1:
            return {splits[0]: documents}
        dealt = deal(documents, dict.fromkeys(splits, 1 / len(splits)), self.seed)
        lacking = [split for split in splits if not dealt[split]]
        if lacking:
            raise self.file.refusal(
                f"{len(documents)} documents cannot be dealt to {', '.join(splits)}: none is left "
                f"for {lacking[0]}; give a file with more rows, or see heading= and format="
            )
        return dealt


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
        max_documents: rows taken per split, from its start; of a local file all are taken.
        joiner: text between documents.
        heading: regular expression of a row that begins a document; the rows up to the next one are
            joined to it. None: every row is a document.
        path: a local file instead of the hub, read as `FileText` says. It bears the set's name
            only if it is the published test file; else its own.
        format: of the local file, see `FileText`.
        encoding: of the local file.
        test_sha256: checksum of the published test file; None if there is no such file.
        seed: of the deal of a local file to several splits.
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
    format: str | None = None
    encoding: str = "utf-8"
    test_sha256: str | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        compiled(self.heading)

    def identity(self) -> dict[str, str]:
        """Name and revision, or what is said of a local file.

        Raises:
            DataError: if the local file is missing, or one of its first rows is not as it should
                be.
        """
        if self.path is None:
            revision = resolved_commit(self.name, "dataset", self.revision)
            return {"name": self.name, "revision": revision, "sha256": ""}
        found = self._local(self.path).identity()
        if found["sha256"] == self.test_sha256:
            found["name"] = self.name
        return found

    def check(self) -> None:
        """Raise DataError if the local file, or the set on the hub, is out of reach or broken."""
        if self.path is None:
            require_on_hub(self.name, "dataset", self.revision, _REMEDY)
        else:
            self._local(self.path).check()

    def documents(self, splits: Iterable[str]) -> dict[str, list[Document]]:
        """Documents of the wanted splits.

        Raises:
            DataError: if the set cannot be reached or has no such split, or a row is not as it
                should be.
        """
        wanted = list(splits)
        if self.path is None:
            refuse_unknown_splits(self.name, wanted, self.splits)
            return {split: self._fetch(split) for split in wanted}
        local = self._local(self.path)
        if wanted != ["test"] and local.file.sha256 == self.test_sha256:
            raise DataError(
                f"data: {local.file.name} is the test text of {self.name} and would become "
                f"{', '.join(wanted)} text; give another file, or read it with data=file"
            )
        rows = local.rows()
        if local.file.kind == "text":  # as on the hub: a line keeps its end, a blank one is empty
            rows = [f"{row}\n" if row.strip() else "" for row in rows]
        return local.deal_rows(rows, wanted)

    def _local(self, path: str) -> FileText:
        return FileText(
            path=path,
            format=self.format,
            encoding=self.encoding,
            column=self.column,
            heading=self.heading,
            joiner=self.joiner,
            seed=self.seed,
        )

    def _fetch(self, split: str) -> list[Document]:
        import datasets

        if self.files is not None:
            refuse_unknown_splits(self.name, [split], self.files)
        try:
            rows = list(
                datasets.load_dataset(
                    self.name,
                    self.subset,
                    revision=self.revision,
                    split=self.splits[split],
                    data_files=None
                    if self.files is None
                    else {self.splits[split]: self.files[split]},
                    streaming=True,
                ).take(self.max_documents)
            )
        except Exception as error:  # its many kinds of failure have no common base
            raise DataError(
                f"data {self.name} could not be fetched ({type(error).__name__}); {_REMEDY}"
            ) from error
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get(self.column), str):
                raise DataError(
                    f"data {self.name}, row {number} of {split}: expected text in column "
                    f"{self.column!r} of {', '.join(map(repr, row))}; choose another with column=…"
                )
        return gather(split, (row[self.column] for row in rows), self.heading, self.joiner)


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


def gather(label: str, rows: Iterable[str], heading: str | None, joiner: str) -> list[Document]:
    """Documents of rows: one each, or one from each heading to the next."""
    begins = compiled(heading)
    texts: list[list[str]] = []
    for row in rows:
        if not texts or begins is None or begins.match(row):
            texts.append([])
        texts[-1].append(row)
    return [Document(f"{label}-{number}", joiner.join(text)) for number, text in enumerate(texts)]


def compiled(heading: str | None) -> re.Pattern[str] | None:
    """The regular expression of headings.

    Raises:
        ConfigError: if it is none.
    """
    try:
        return None if heading is None else re.compile(heading)
    except (re.error, TypeError) as error:
        raise ConfigError(
            f"data: heading={heading!r} is no regular expression ({error})"
        ) from error


def refuse_unknown_splits(name: str, wanted: Sequence[str], there: Iterable[str]) -> None:
    """Raise DataError if a source has not all splits that are wanted of it."""
    lacking = [split for split in wanted if split not in there]
    if lacking:
        raise DataError(f"data {name} has no {lacking[0]} split; it has {', '.join(there)}")


def shared_text(judged: set[str], other: set[str]) -> float:
    """Share of the characters of the lines `judged` that stand in lines of `other` as well."""
    return sum(map(len, judged & other)) / max(sum(map(len, judged)), 1)


def telling_lines(documents: Iterable[Document]) -> set[str]:
    """Lines that two texts do not share by chance; all lines of a text that has only short ones."""
    lines = {line.strip() for document in documents for line in document.text.split("\n")} - {""}
    return {line for line in lines if len(line) >= _TELLING} or lines


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
