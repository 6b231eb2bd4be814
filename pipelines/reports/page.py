"""A report page: headings, text, tables and figures, rendered once as HTML and once as Markdown.

The HTML is one self-contained file (figures inside, no scripts) that reads on a phone and prints;
the Markdown says the same for terminals and diffs.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader


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
    """One claim and what the numbers say, such as reproduced, not reproduced, inconclusive."""

    claim: str
    outcome: str
    evidence: str


Block = Text | Heading | Table | Figure | Verdict


@dataclass
class Page:
    """A report in the making."""

    title: str
    subtitle: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        """Append blocks."""
        self.blocks += blocks

    def write(self, folder: Path) -> None:
        """Write `index.html` and `report.md`; figures must be in `folder/figures` already."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
        )
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
                case Verdict(claim, outcome, evidence):
                    parts.append(f"- **{outcome}**: {claim} {evidence}")
                case Table():
                    parts.append(_markdown_table(block))
        return "\n\n".join(parts) + "\n"


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
