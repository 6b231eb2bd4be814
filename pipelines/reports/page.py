"""A report page: headings, text, tables and figures, rendered once as HTML and once as Markdown.

The HTML is one self-contained file (figures and a few lines of script inside) that reads on a phone
and prints; the Markdown says the same for terminals and diffs.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from effllm.pipelines.files import replace_synced
from effllm.pipelines.stage import Metrics


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    body: str


@dataclass(frozen=True)
class Heading:
    """A section title."""

    title: str

    @property
    def anchor(self) -> str:
        """Its name in links."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows. `best` are cells (row, column) to stand out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()

    @property
    def marked(self) -> list[list[str]]:
        """Rows in Markdown, the best in bold."""
        return [
            [f"**{cell}**" if (line, place) in self.best else cell
             for place, cell in enumerate(row)]
            for line, row in enumerate(self.rows)
        ]  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure stored as `figures/<name>.png`, `.svg` and `.csv` beside the page."""

    name: str
    caption: str


@dataclass(frozen=True)
class Verdict:
    """One claim and what the numbers say, such as supported, not supported, inconclusive.

    `conditions` are those that differ from the paper's; they stand beside the outcome.
    """

    claim: str
    outcome: str
    evidence: str
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on claims that belong together."""

    title: str
    verdicts: Sequence[Verdict]


@dataclass(frozen=True)
class Mark:
    """A marked piece of a text: with a label it stands out, without one it is underlined."""

    text: str
    label: str = ""
    hint: str = ""  # shown where a pointer rests; say it elsewhere too, for paper and phones


@dataclass(frozen=True)
class Passages:
    """Texts side by side, word for word: title -> pieces, some of them marked."""

    title: str
    texts: Mapping[str, Sequence[str | Mark]]


Block = Text | Heading | Table | Figure | Verdicts | Passages


@dataclass
class Page:
    """A report in the making.

    Attributes:
        title: of the page.
        subtitle: what was measured.
        question: that the page answers.
        answer: in two sentences, or why there is none.
        conditions: of the run that differ from the paper's.
        arxiv: number of the paper.
        blocks: what follows, in order.
        data: file beside the page with its figures as data.
    """

    title: str
    subtitle: str
    question: str = ""
    answer: str = ""
    conditions: Sequence[str] = ()
    arxiv: str = ""
    blocks: list[Block] = field(default_factory=list)
    data: str = "results.json"

    def add(self, *blocks: Block | None) -> None:
        """Append blocks; None is no block."""
        self.blocks += [block for block in blocks if block is not None]

    @property
    def headings(self) -> list[Heading]:
        """The table of contents."""
        return [block for block in self.blocks if isinstance(block, Heading)]

    @property
    def outcomes(self) -> Metrics:
        """Outcome -> verdicts on the page with it."""
        found = [
            verdict.outcome
            for block in self.blocks
            if isinstance(block, Verdicts)
            for verdict in block.verdicts
        ]
        return {outcome: found.count(outcome) for outcome in dict.fromkeys(found)}

    @property
    def counts(self) -> str:
        """How many verdicts there are of each outcome; empty for none."""
        found = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.items())
        return f"Verdicts: {found}." if found else ""

    @property
    def different(self) -> str:
        """Conditions of the run that are not the paper's; verdicts name those of their own."""
        return f"Not as in the paper: {'; '.join(self.conditions)}." if self.conditions else ""

    @property
    def lead(self) -> list[str]:
        """The lines below the title."""
        lines = [self.subtitle, self.question, self.answer, self.counts, self.different]
        return [line for line in lines if line]

    def write(self, folder: Path) -> None:
        """Write `index.html` and `report.md`; figures must be in `folder/figures` already."""
        blocks = [(type(block).__name__.lower(), block) for block in self.blocks]
        images = {
            block.name: _data_uri(folder / "figures" / f"{block.name}.svg")
            for block in self.blocks
            if isinstance(block, Figure)
        }
        for template, file in {"page.html.j2": "index.html", "page.md.j2": "report.md"}.items():
            text = _render(template, page=self, blocks=blocks, images=images)
            (folder / file).write_text(text, encoding="utf-8")


def write_index(folder: Path) -> None:
    """Write `index.html` over all reports in a folder, from the `run.json` of each."""
    reports = [
        {"name": run.parent.name, "finished": "", "verdicts": {}}
        | json.loads(run.read_text("utf-8"))
        for run in sorted(folder.glob("*/run.json"))
    ]
    reports.sort(key=lambda report: str(report["finished"]), reverse=True)
    partial = folder / ".index.partial"
    partial.write_text(_render("index.html.j2", reports=reports), encoding="utf-8")
    replace_synced(partial, folder / "index.html")


def add_note(folder: Path, note: str) -> None:
    """Put a line below the title of a written page, where only its run knows what to say."""
    page, text = folder / "index.html", folder / "report.md"
    html, title = page.read_text(encoding="utf-8"), "</h1>\n"
    line = f'<p class="note">{escape(note)}</p>\n'
    page.write_text(html.replace(title, title + line, 1), encoding="utf-8")
    first, _, rest = text.read_text(encoding="utf-8").partition("\n")
    text.write_text(f"{first}\n\n{note}\n{rest}", encoding="utf-8")


def split_interval(cell: str) -> tuple[str, str]:
    """`1,920 [1,800, 2,050]` -> its value and its interval; any other cell stays whole."""
    found = re.fullmatch(r"([-+\d.,e]+) (\[[-+\d.,e]+, [-+\d.,e]+\])", cell)
    return (found[1], found[2]) if found else (cell, "")


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith("html.j2"),
        trim_blocks=True,
    )
    environment.filters |= {"split_interval": split_interval, "joined": _joined}
    return environment.get_template(template).render(**values).rstrip() + "\n"


def _joined(pieces: Sequence[str | Mark]) -> str:
    """A text with its marks as `⟦marked⟧label`."""
    return "".join(
        piece if isinstance(piece, str) else f"⟦{piece.text}⟧{piece.label}" for piece in pieces
    )


def _data_uri(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
