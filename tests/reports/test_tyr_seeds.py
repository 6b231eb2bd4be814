"""Týr over seeds, on made-up measurements."""

import numpy as np
import pytest
from said import bold, flat
from tyr_steps import SEARCHED

from effllm.pipelines.reports.models.comparison import Comparison
from effllm.pipelines.reports.models.seeds import seeds_table
from effllm.pipelines.reports.models.subjects import Subject
from effllm.pipelines.reports.tyr.claims import at, seeds_verdicts
from effllm.pipelines.reports.tyr.names import describe

EVEN = {**SEARCHED, "searched": False}
SECOND = {**EVEN, "levels": 1, "score": "second", "accumulation": "level0"}


def row(step, seed, test, heldout, sparsity=0.5):
    examples = {"test": np.log([test] * 6), "heldout": np.log([heldout] * 6)}
    label = f"{step['score']}/{step['searched']}{seed}{sparsity}"
    return describe(Subject(label, [{**step, "sparsity": sparsity}], examples, seed=seed))


@pytest.fixture
def data():
    """The search gains 9 to 11 % on the even level, and nothing certain on the rival."""
    rows = []
    for seed, (searched, even, second) in enumerate([(90, 100, 91), (91, 100, 90), (89, 100, 90)]):
        rows += [row(SEARCHED, seed, searched, 80), row(EVEN, seed, even, 100)]
        rows += [row(SECOND, seed, second, 100)]
    rows += [row(SEARCHED, 0, 40, 40, sparsity=0.25), row(EVEN, 0, 50, 50, sparsity=0.25)]
    return Comparison(rows, 200)


def test_a_verdict_needs_two_seeds_and_rests_on_test_text(data):
    found = {one.claim.partition(" beats ")[2]: one for one in flat(seeds_verdicts(data))}
    assert set(found) == {
        "Týr supernet, even in test perplexity.",
        "ZipLM-style, second order, even in test perplexity.",
    }  # one seed at 25 % says nothing
    even = found["Týr supernet, even in test perplexity."]
    assert (
        even.outcome == "supported under other conditions"
        and "each: -10.0, -9.0, -11.0" in even.evidence
    )
    rival = found["ZipLM-style, second order, even in test perplexity."]
    assert rival.outcome == "inconclusive" and "held-out -20.0" in rival.evidence


def test_the_table_of_a_sparsity_has_its_rows_and_both_texts(data):
    mine = at(data, "25 %")
    assert [one.pattern for one in mine.rows] == ["25 %", "25 %"]
    for role, name in (("test", "Test perplexity"), ("heldout", "Held-out perplexity")):
        table = seeds_table(mine, mine.rows, role=role)
        assert list(table.columns) == [name, "seed 0", "mean"]  # one seed has no spread
        assert table.rows[0][:2] == ["Týr, searched", "40.00"]
        assert bold(table) == {"mean": ["Týr, searched"]}
