"""What all reports are built of: rows, results, paired arms, columns, and the one page."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from said import bold

import effllm.pipelines.reports as reports
from effllm.modules.errors import DataError
from effllm.modules.evaluation.intervals import Interval, estimate
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.reports.page import Heading, Page, Table, Text, write_index
from effllm.pipelines.reports.paired import Paired
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.sds.page import ReportSds
from effllm.pipelines.reports.stage import Findings
from effllm.pipelines.reports.table import Column, columns, make_table, published_tables
from effllm.pipelines.reports.verdicts import decide
from effllm.pipelines.reports.words import show
from effllm.pipelines.stage import StageContext

FIELDS = ["method", "model", "setting", "measure", "value", "source", "conditions"]
PAPERS = sorted(Path(reports.__file__).parent.glob("*/paper.csv"), key=str)


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (None, ".2f", ""),
        (Interval(1.234), ".2f", "1.23"),
        (Interval(0.5, 0.25, 0.75), ".0%", "50 [25, 75]"),
        (Interval(-0.012, -0.02, 0.004), "+.1%", "-1.2 [-2.0, +0.4]"),
        (Interval(34.2, 9.9, 1234.5), "", "34.20 [9.90, 1,234]"),
        (Interval(-9.06, -1500.0, 2e6), "+", "-9.1 [-1,500, +2.0e+06]"),
        (math.inf, "", "inf"),
    ],
)
def test_figures_are_written_in_one_way(value, form, text):
    assert show(value, form) == text


def test_columns_without_entries_are_left_out_and_the_best_of_the_ranked_rows_is_bold():
    values = {"dense": (1.0, 5), "a": (3.0, 5), "b": (2.0, 5)}
    table = make_table(
        values,
        Column("Row", lambda row: row),
        Column("nothing", lambda row: None),
        Column("empty", lambda row: ""),
        Column("low", lambda row: Interval(values[row][0]), ".1f", best=min),
        Column("alike", lambda row: values[row][1], ".0f", best=max),
        *columns({1: "one", 2: "two"}, lambda row, power: values[row][0] ** power, ".0f", max),
        ranked=lambda row: row != "dense",
    )
    assert table.columns == ["Row", "low", "alike", "one", "two"]
    assert table.rows == [
        ["dense", "1.0", "5", "1", "1"],
        ["a", "3.0", "5", "3", "9"],
        ["b", "2.0", "5", "2", "4"],
    ]
    assert bold(table) == {"low": ["b"], "one": ["a"], "two": ["a"]}  # equal ones have no best


@pytest.mark.parametrize("file", PAPERS, ids=lambda file: file.parent.name)
def test_published_figures_have_a_source_and_all_stand_in_a_table(file):
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == FIELDS
    assert all(row[key] for row in rows for key in row if key != "setting")
    tables = published_tables(file.parent)
    cells = [cell for table in tables for line in table.rows for cell in line[1:] if cell]
    assert sorted(cells) == sorted(row["value"] for row in rows)
    assert all(row["source"] in " ".join(table.note for table in tables) for row in rows)


def test_every_paper_has_its_figures():
    pages = {page.parent.name for page in Path(reports.__file__).parent.glob("*/page.py")}
    assert {file.parent.name for file in PAPERS} == pages - {"demo"}  # of no paper


def made(stage, digest, kind=Artifact, **inputs):
    timing = {"seconds": 1.0, "finished": "2026-01-02T03:04:05+00:00", "peak_rss_bytes": 2**30}
    return kind(
        Path(),
        {
            "stage": stage,
            "digest": digest * 12,
            "inputs": inputs,
            "timing": timing,
            "outputs": {},
            "warnings": [],
            "env": {"device": "a CPU", "threads": 1, "python": "3.11", "packages": {}},
            "code": {"git_sha": "abc"},
            "config": {},
            "command": "effllm paper=sds",
        },
    )


def test_results_are_asked_by_stage_kind_and_origin():
    base = made("import_model", "a", Checkpoint)
    pruned = made("prune", "b", Checkpoint, model=base.label)
    measured = made("perplexity", "c", model=pruned.label, windows=["absent/0"])
    results = Results([base, pruned, measured])
    assert results.first("prune") is pruned and results.of(Checkpoint) == [base, pruned]
    assert results.input(measured, "model", Checkpoint) is pruned
    lineage = results.lineage(measured.label)
    assert [one["stage"] for one in lineage] == ["import_model", "perplexity", "prune"]
    with pytest.raises(DataError, match=r"none of its 3 results is of stage adjust.*~pipeline"):
        results.first("adjust")
    with pytest.raises(DataError, match=r"none of its 3 results"):
        results.first("prune", lambda one: False)
    with pytest.raises(DataError, match=r"import_model/a+, model of prune/b+, is not among"):
        Results([pruned]).input(pruned, "model", Checkpoint)


def test_rows_keep_values_and_intervals_apart():
    figures = {"ppl": Interval(2.0, 1.0, 3.0), "few": Interval(4.0), "seconds": 5.0, "none": None}
    row = ResultRow("p", "m", "M", "2:4", None, "prune/0", figures, {"ppl": 9, "few": 3}).plain
    assert row["metrics"] == {"ppl": 2.0, "few": 4.0, "seconds": 5.0, "none": None}
    assert row["intervals"] == {"ppl": [1.0, 3.0], "few": None} and row["n"]["ppl"] == 9
    assert json.loads(json.dumps(row)) == row


def test_arms_are_paired_by_example():
    random = np.random.default_rng(0)
    size = random.uniform(1, 9, 40)  # of the example: most of the spread
    arms = {
        name: [{"tokens": n, "seconds": factor * n + random.normal(0, 0.01)} for n in size]
        for name, factor in (("slow", 2.0), ("fast", 1.0))
    }
    paired = Paired(arms, 1000)
    change = paired.change("fast", "slow", "seconds")
    assert change.high < 0 and paired.mean("fast", "seconds").low > 0
    for ratio in (
        paired.over("slow", "fast", "seconds"),
        paired.ratio_over("fast", "slow", "tokens", "seconds"),
    ):
        assert ratio.value == pytest.approx(2, abs=0.02) and ratio.high - ratio.low < 0.02
    alone = estimate(paired.values("slow", "seconds")[:, 0], resamples=1000)
    assert paired.mean("slow", "seconds") == alone and alone.high - alone.low > 1
    assert paired.ratio("slow", "tokens", "seconds", 100).value == pytest.approx(50, abs=1)
    assert paired.ratio("slow", "tokens", "absent") is None


@pytest.fixture
def page_of(tmp_path, monkeypatch):
    """The page of a report with two verdicts at a scale, as text and as HTML."""
    differs = ("W = 3, paper 6", "K = 8, paper 15")
    holds = decide("It holds.", "1.", holds=True, fails=False, paper=True, conditions=differs)
    fails = decide("So does it.", "2.", holds=False, fails=True)
    row = ResultRow(
        "sds", "m", "A row", "", 0, "prune/0", {"ppl": Interval(2.0, 1.0, 3.0)}, {"ppl": 9}
    )

    def find(stage, results, figures):
        return Findings(
            subject="a model",
            answer="It is 7 % better.",
            main=[Table(["a|b", "c"], [["x|y", "1"]], best=frozenset([(0, 1)])), None],
            rows=[row],
            verdicts={"Claims": [holds, fails], "No claims": []},
            judged="How they are judged.",
            sections={"Empty": [None], "More": [Text("<more>")]},
            conditions=("W = 3, paper 6",),
        )

    monkeypatch.setattr(ReportSds, "find", find)

    def page(scale):
        stage = ReportSds(scale=scale, resamples=10, seed=0)
        results = [made("import_model", "a")]
        quiet = dict.fromkeys(("log", "progress"), lambda *_: None)
        ctx = StageContext("report", {"results": results}, tmp_path, "cpu", 0, **quiet)
        metrics = stage.run(ctx)
        return metrics, (tmp_path / "report.md").read_text(), (tmp_path / "index.html").read_text()

    return page


def test_a_page_begins_with_question_answer_counts_and_conditions(page_of):
    metrics, text, html = page_of("cpu")
    assert metrics == {"supported under other conditions": 1, "not supported": 1}
    assert text.split("\n\n")[:6] == [
        "# SDS: sparse-dense-sparse pruning",
        "a model, scale cpu. Every figure was measured by effllm, except under “Beside the paper”.",
        ReportSds.QUESTION,
        "It is 7 % better.",
        "Verdicts: 1 supported under other conditions, 1 not supported.",
        "Not as in the paper: W = 3, paper 6.",
    ]
    said = "- **supported under other conditions** (K = 8, paper 15): It holds. 1."
    assert f"### Claims\n\n{said}\n- **not supported**: So does it. 2." in text
    assert "<small>K = 8, paper 15</small>" in html
    assert "<small>W = 3" not in html  # the run's, which stands at the top
    assert "| x\\|y | **1** |" in text and "No claims" not in text and "Empty" not in text
    assert "by commit abc (effllm paper=sds)" in text and "| A row | 0 | prune/0 |" in text
    assert '<a href="#more">More</a>' in html and "&lt;more&gt;" in html
    assert '<td class="best">1</td>' in html and 'href="https://arxiv.org/abs/2408.10473"' in html


def test_a_smoke_page_warns_and_judges_nothing_whatever_the_paper_says(page_of):
    metrics, text, html = page_of("smoke")
    assert metrics == {} and "It holds" not in text + html and "7 %" not in text + html
    assert "its figures mean nothing" in text and "How they are judged" not in text


def test_the_index_lists_runs_the_newest_first(tmp_path):
    for name, more in {
        "old": {},  # of a time before dates were kept
        "first": {"finished": "2026-01-01", "verdicts": {"supported": 2, "inconclusive": 1}},
        "second": {"finished": "2026-01-02", "verdicts": {}},
    }.items():
        (tmp_path / name).mkdir()
        run = {"paper": "sds", "scale": "cpu", "differs": [], **more}
        (tmp_path / name / "run.json").write_text(json.dumps(run))
    write_index(tmp_path)
    html = (tmp_path / "index.html").read_text()
    places = [html.index(f'href="{name}/index.html"') for name in ("second", "first", "old")]
    assert places == sorted(places) and "2 supported, 1 inconclusive" in html and "3 runs" in html
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "first",
        "index.html",
        "old",
        "second",
    ]


def test_headings_have_anchors_that_links_can_name():
    page = Page("t", "s", question="q?")
    page.add(Heading("All metrics at 4:8"), None, Heading("Where “free” orders help"))
    assert [one.anchor for one in page.headings] == ["all-metrics-at-4-8", "where-free-orders-help"]
