"""What reports say, for their tests."""

import json
import math
import re

FIELDS = [
    *("paper", "method", "title", "pattern", "seed", "artifact", "n", "metrics", "intervals"),
    *("scale", "model", "texts"),
]
_LINKS = r"#|figures/\w+\.csv$|results\.json$|report\.md$|https://arxiv\.org/abs/\d{4}\.\d{5}$"


def flat(verdicts):
    """Verdicts of all groups of claims."""
    return [verdict for group in verdicts.values() for verdict in group]


def bold(table):
    """Titles of rows with a best value in a column, by the title of the column."""
    found = {}
    for row, column in sorted(table.best):
        found.setdefault(table.columns[column], []).append(table.rows[row][0])
    return found


def read_report(folder, *figures):
    """Rows of a report at smoke scale, after a look at what all pages have in common."""
    page, text = (folder / "index.html").read_text(), (folder / "report.md").read_text()
    assert set(re.findall(r'src="([^"]{5})', page)) <= {"data:"}  # nothing is loaded from elsewhere
    links = re.findall(r'href="([^"]*)"', page)
    assert links and all(re.match(_LINKS, link) for link in links), links
    anchors = [link.removeprefix("#") for link in links if link.startswith("#")]
    assert len(set(anchors)) == len(anchors) and all(f'id="{one}"' in page for one in anchors)
    top = text[: text.index("\n## ")]
    assert "smoke run" in top and "No verdicts at smoke scale." in top and "- **" not in text
    assert "?\n" in top and "not comparable" in text and "\n## Cost and provenance" in text
    for name in figures:
        for suffix in ("png", "svg", "csv"):
            assert (folder / "figures" / f"{name}.{suffix}").stat().st_size > 0
    rows = json.loads((folder / "results.json").read_text())
    for row in rows:
        assert list(row) == FIELDS and row["artifact"] and row["title"]
        assert set(row["intervals"]) <= set(row["n"]) <= set(row["metrics"])
        for key, ends in row["intervals"].items():
            low, high = ends or (-math.inf, math.inf)  # none below five examples
            assert low <= row["metrics"][key] + 1e-12 and row["metrics"][key] <= high + 1e-12
            assert row["n"][key] > 1
    return rows
