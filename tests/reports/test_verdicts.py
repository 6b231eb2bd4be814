"""The one rule for verdicts of all papers."""

from pathlib import Path

import pytest

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.page import Page, Verdicts
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.verdicts import decide, differing, judge, model_and_texts


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        (Interval(-10, -12, -8), "reproduced"),
        (Interval(-4, -5, -2), "inconclusive"),  # beyond zero, but not beyond the margin
        (Interval(0, -1, 1), "inconclusive"),
        (Interval(5, 4, 6), "not reproduced"),
        (Interval(-10), "no verdict"),  # fewer than five examples
    ],
)
def test_a_verdict_needs_the_whole_interval_beyond_the_margin(interval, outcome):
    found = judge("c", interval, "e.", below=0, margin=3.0, paper=True)
    assert found.outcome == outcome and found.evidence.startswith("e.")
    turned = Interval(5 - interval.value, 5 - interval.high, 5 - interval.low)
    assert judge("c", turned, "e.", above=5, margin=3.0, paper=True) == found


@pytest.mark.parametrize(
    ("holds", "ours", "papers", "elsewhere"),
    [
        (True, "supported", "reproduced", "supported under other conditions"),
        (False, "not supported", "not reproduced", "not supported under other conditions"),
    ],
)
def test_reproduced_is_said_under_the_papers_conditions_alone(holds, ours, papers, elsewhere):
    def said(**options):
        found = decide("c", "e", holds=holds, fails=not holds, **options)
        return found.outcome, found.conditions

    differs = ("W = 3, paper 6",)
    assert said(conditions=differs) == (ours, ())  # a claim of ours has no paper's conditions
    assert said(paper=True) == (papers, ())
    assert said(paper=True, conditions=differs) == (elsewhere, differs)
    open_one = decide("c", "e", holds=False, fails=False, paper=True, conditions=differs)
    assert (open_one.outcome, open_one.conditions) == ("inconclusive", ())


def test_conditions_that_differ_are_named_with_the_papers():
    ours = {"W": 3, "K": 15, "gate": "0.3 nats"}
    paper = {"W": 6, "K": (15, 25), "gate": ("0.2 nats", "0.1 nats"), "text": "c4"}
    assert differing(ours, paper) == (
        "W = 3, paper 6",
        "gate = 0.3 nats, paper 0.2 nats or 0.1 nats",
        "text = none, paper c4",
    )


def test_conditions_stand_in_the_verdict_on_both_pages(tmp_path):
    page = Page("t", "s")
    conditions = ("W = 3, paper 6", "K = 12, paper 15 or 25")
    so = decide("It is <so>.", "1.", holds=True, fails=False, paper=True, conditions=conditions)
    page.add(Verdicts("What is so", [so]))
    page.write(tmp_path)
    line = "- **supported under other conditions** (W = 3, paper 6; K = 12, paper 15 or 25): It is"
    assert line in (tmp_path / "report.md").read_text()
    html = (tmp_path / "index.html").read_text()
    assert '<b class="good">supported under other conditions<small>W = 3, paper 6</small>' in html
    assert page.outcomes == {"supported under other conditions": 1}


def test_a_run_is_described_by_its_model_and_texts():
    def made(stage, **manifest):
        return Artifact(Path(), {"stage": stage, **manifest})

    def windows(split, protocol, count, length):
        config = {"split": split, "sequence_length": length}
        return made("make_windows", config=config, metrics={"protocol": protocol, "windows": count})

    results = [
        made("import_model", sources={"source": {"name": "facebook/opt-125m"}}),
        windows("calibration", "allenai/c4-calibration-2048x128-crop", 128, 2048),
        windows("heldout", "allenai/c4-heldout-2048x8", 8, 2048),
        windows("test", "Salesforce/wikitext-test-512x80", 80, 512),
    ]
    assert model_and_texts(Results(results)) == {
        "model": "opt-125m",
        "calibration": "c4, 128 x 2048",
        "test text": "wikitext, windows of 512",
    }
