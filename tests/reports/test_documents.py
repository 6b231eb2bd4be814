"""Tables of the documents say which report they are from, and are filled from it."""

import re
from pathlib import Path

import pytest

from effllm.modules.errors import DataError
from effllm.pipelines.commands.composing import CONF_DIR
from effllm.pipelines.reports.documents import MARKED, fill, main

ROOT = Path(CONF_DIR).resolve().parent
DOCUMENTS = sorted((ROOT / "docs" / "papers").glob("*.md"))
REPORT = """# Title

What was measured.

| A | B |
|---|---:|
| a | **1** |

A note.

## More

| C | D |
|---|---:|
| c | 2 |

Text.

| E | F |
|---|---:|
| e | 3 |
"""
DOCUMENT = """Before.

<!-- from x-cpu: the top -->
| A | B |
|---|---:|
| a | 9 |
<!-- end -->

Between.

<!-- from x-cpu: More -->
<!-- end -->

<!-- from other-cpu: More -->
| kept |
<!-- end -->
"""


@pytest.fixture
def reports(tmp_path):
    (tmp_path / "x-cpu").mkdir()
    (tmp_path / "x-cpu" / "report.md").write_text(REPORT)
    return tmp_path


def test_only_what_is_marked_is_written_anew(reports, tmp_path, capsys):
    file = tmp_path / "doc.md"
    file.write_text(DOCUMENT)
    assert main([str(reports), str(file)]) == 0 and str(file) in capsys.readouterr().out
    more = "| C | D |\n|---|---:|\n| c | 2 |\n\n| E | F |\n|---|---:|\n| e | 3 |\n"
    wanted = DOCUMENT.replace("| a | 9 |", "| a | **1** |")
    assert file.read_text() == wanted.replace("More -->\n<!-- end", f"More -->\n{more}<!-- end")
    assert main([str(reports), str(file)]) == 0 and capsys.readouterr().out == ""  # nothing to do


def test_a_section_that_a_report_lacks_is_named(reports):
    with pytest.raises(DataError, match=r"x-cpu/report.md: no table in the section 'Less'"):
        fill("<!-- from x-cpu: Less -->\n<!-- end -->\n", reports)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.stem)
def test_tables_of_the_documents_are_whole_and_from_reports_that_exist(file):
    text = file.read_text()
    marked = MARKED.findall(text)
    assert len(marked) == text.count("<!-- from ") == text.count("<!-- end -->")
    papers = {path.stem for path in (ROOT / "conf" / "paper").glob("*.yaml")}
    for name, _, table in marked:
        assert name.partition("-")[0] in papers
        lines = [line for line in table.splitlines() if line]
        assert lines and all(line.startswith("|") and line.endswith("|") for line in lines)
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        bare = [re.sub(r"\\\||`[^`]*`", "", line) for line in table.splitlines()]
        columns = {line.count("|") for line in bare}
        assert len(columns) == 1, table


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.stem)
def test_documents_have_the_same_headings(file):
    found = re.findall(r"^## (.*)", file.read_text(), flags=re.MULTILINE)
    wanted = ["Claim", "Method", "Deviations", "Controls", "Our figures", "Reproduce"]
    assert [one for one in wanted if one not in found] == []
