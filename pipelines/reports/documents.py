"""Tables in documents, filled from the reports that they were taken from.

A document says where a table is from, `<!-- from sds-cpu: All metrics at 4:8 -->`, and where it
ends, `<!-- end -->`; what is between is written anew by

    python -m effllm.pipelines.reports.documents outputs/reports docs/papers/*.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from effllm.modules.errors import DataError, EffLLMError

MARKED = re.compile(r"<!-- from ([\w.=,@+-]+): (.+?) -->\n(.*?)<!-- end -->", flags=re.DOTALL)
TOP = "the top"  # of a report: what its answer rests on


def fill(document: str, reports: Path) -> str:
    """A document with the tables of the reports in a folder.

    Args:
        document: as it is.
        reports: folder of reports; those that are not there leave their tables as they are.

    Raises:
        DataError: if a report has no table where the document says.
    """

    def table(found: re.Match[str]) -> str:
        name, section, _ = found.groups()
        file = reports / name / "report.md"
        if not file.is_file():
            return found[0]
        rows = tables_of(file.read_text(encoding="utf-8"), section)
        if not rows:
            raise DataError(f"{file}: no table in the section {section!r} that a document names")
        return f"<!-- from {name}: {section} -->\n{rows}\n<!-- end -->"

    return MARKED.sub(table, document)


def tables_of(report: str, section: str) -> str:
    """The tables below a heading of a report, without their notes."""
    top, *rest = re.split(r"^## ", report, flags=re.MULTILINE)
    sections = {TOP: top} | {one.partition("\n")[0]: one for one in rest}
    tables = re.findall(r"(?:^\|.*\n?)+", sections.get(section, ""), flags=re.MULTILINE)
    return "\n\n".join(table.strip() for table in tables)


def main(arguments: Sequence[str]) -> int:
    """Fill the documents that are named after the folder of reports."""
    reports, *documents = map(Path, arguments)
    for document in documents:
        before = document.read_text(encoding="utf-8")
        after = fill(before, reports)
        if after != before:
            document.write_text(after, encoding="utf-8")
            print(document)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EffLLMError as error:
        sys.exit(f"{type(error).__name__}: {error}")
