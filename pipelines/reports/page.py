"""A report page: headings, text, tables and figures, rendered once as HTML and once as Markdown.

The HTML is one self-contained file (figures inside, no scripts) that reads on a phone and prints;
the Markdown says the same for terminals and diffs.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from effllm.pipelines.stage import Metrics


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    body: str


@dataclass(frozen=True)
class Heading:
    """A section title."""

    title: str


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows. `strong` marks rows (by index) to stand out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: frozenset[int] = frozenset()


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


Block = Text | Heading | Table | Figure | Verdict | Passages


@dataclass
class Page:
    """A report in the making."""

    title: str
    subtitle: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        """Append blocks."""
        self.blocks += blocks

    @property
    def outcomes(self) -> Metrics:
        """Outcome -> verdicts on the page with it."""
        found = [block.outcome for block in self.blocks if isinstance(block, Verdict)]
        return {outcome: found.count(outcome) for outcome in dict.fromkeys(found)}

    def write(self, folder: Path) -> None:
        """Write `index.html` and `report.md`; figures must be in `folder/figures` already."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
        )
        environment.filters["split_interval"] = split_interval
        template = environment.get_template("page.html.j2")
        blocks = [(type(block).__name__.lower(), block) for block in self.blocks]
        images = {
            block.name: _data_uri(folder / "figures" / f"{block.name}.svg")
            for block in self.blocks
            if isinstance(block, Figure)
        }
        page = template.render(page=self, blocks=blocks, images=images)
        (folder / "index.html").write_text(page, encoding="utf-8")
        (folder / "report.md").write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """The page as Markdown."""
        parts = [f"# {self.title}", self.subtitle]
        for block in self.blocks:
            match block:
                case Heading(title):
                    parts.append(f"## {title}")
                case Text(body):
                    parts.append(body)
                case Figure(name, caption):
                    parts.append(f"![{caption}](figures/{name}.png)")
                case Verdict(claim, outcome, evidence, conditions):
                    other = f" ({'; '.join(conditions)})" if conditions else ""
                    parts.append(f"- **{outcome}**{other}: {claim} {evidence}")
                case Table():
                    parts.append(_markdown_table(block))
                case Passages(title, texts):
                    parts.append(f"### {title}")
                    for name, pieces in texts.items():
                        parts += [f"{name}:", _markdown_text(pieces)]
        return "\n\n".join(parts) + "\n"


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


def _markdown_text(pieces: Sequence[str | Mark]) -> str:
    """An indented block, which Markdown shows as it is."""
    text = "".join(
        piece if isinstance(piece, str) else f"⟦{piece.text}⟧{piece.label}" for piece in pieces
    )
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _markdown_table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join(["---", *["---:"] * (len(table.columns) - 1)]) + "|"
    rows = [
        line([f"**{cell}**" if index in table.strong and cell else cell for cell in row])
        for index, row in enumerate(table.rows)
    ]
    text = "\n".join([line(table.columns), rule, *rows])
    return f"{text}\n\n{table.note}" if table.note else text


def _data_uri(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
