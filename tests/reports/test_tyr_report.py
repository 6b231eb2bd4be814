"""How rows and searches of the Týr report are named, and its verdicts."""

from pathlib import Path

import numpy as np
import pytest
from said import flat
from tyr_steps import SEARCHED

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.structural import Allocation
from effllm.pipelines.reports.models.comparison import Comparison
from effllm.pipelines.reports.models.subjects import Subject
from effllm.pipelines.reports.results import Results
from effllm.pipelines.reports.tyr.claims import answer, verdicts
from effllm.pipelines.reports.tyr.names import describe_all
from effllm.pipelines.reports.tyr.tables import searches

ALONE = {**SEARCHED, "guided": 0}


def names(*steps):
    return [
        (row.base, row.method)
        for row in describe_all(Subject(str(n), [step]) for n, step in enumerate(steps))
    ]


@pytest.mark.parametrize("step", [SEARCHED, ALONE])
def test_the_only_search_is_the_searched_model(step):
    assert names(step) == [("searched", "Týr, searched")]


def test_a_search_on_another_budget_says_so():
    assert names({**SEARCHED, "budget": "latency", "iteration": 2}) == [
        ("searched_2", "Týr, searched within latency, 2 rounds")
    ]


@pytest.mark.parametrize("steps", [(SEARCHED, ALONE), (ALONE, SEARCHED)])
def test_a_search_without_guided_generations_is_a_variant_of_one_with_them(steps):
    assert names(*steps) == [
        ("searched", "Týr, searched"),
        ("searched_variant", "Týr, searched: evolution alone"),
    ]


def test_searches_at_other_sparsities_or_scores_are_not_set_against_each_other():
    others = {**ALONE, "sparsity": 0.25}, {**ALONE, "score": "second"}
    assert [method for _, method in names(SEARCHED, *others)] == [
        "Týr, searched",
        "Týr, searched",
        "Týr, searched: score second",
    ]


def test_searches_are_named_by_the_models_that_they_led_to():
    def made(kind, stage, digest, **inputs):
        return kind(Path(), {"stage": stage, "digest": digest, "instance": "x", "inputs": inputs})

    first, second = (made(Allocation, "search_allocation", one) for one in "ab")
    results = [
        made(Artifact, "import_model", "e"),
        first,
        second,
        made(Checkpoint, "export_compact", "c", allocation=[second.label]),
        made(Checkpoint, "export_compact", "d", allocation=[first.label]),
        made(Checkpoint, "export_compact", "f", allocation=[]),
    ]
    steps = {"c": SEARCHED, "d": ALONE, "f": {**ALONE, "searched": 0}}
    rows = describe_all(
        [Subject("import_model/e", [])]
        + [Subject(f"export_compact/{digest}", [step]) for digest, step in steps.items()]
    )
    assert searches(rows, Results(results)) == {
        "Týr, searched, 50 %": second,
        "Týr, searched: evolution alone, 50 %": first,
    }


def gained(test, heldout, *steps, conditions=()):
    """The verdicts on two models, the second with so much more nats on every window."""
    rows = [
        Subject(str(n), [step], {"test": np.full(6, n * test), "heldout": np.full(6, n * heldout)})
        for n, step in enumerate(steps)
    ]
    return flat(verdicts(Comparison(describe_all(rows), 100, conditions), []))


def test_a_second_round_is_judged_on_test_text_beyond_another_draw():
    def said(test):
        second = {**SEARCHED, "iteration": 2}
        (found,) = gained(np.log1p(test / 100), np.log1p(-0.3), SEARCHED, second)
        assert "second, finer round" in found.claim and "held-out -30.0" in found.evidence
        return found.outcome

    assert said(+0.2) == "inconclusive"  # whatever held-out text says
    assert said(-1.5) == "inconclusive"  # another seed moves a difference by as much
    assert said(-2.5) == "supported"


def test_guided_generations_and_rounds_that_the_paper_has_not_stand_in_the_verdict():
    even = {**ALONE, "searched": 0}
    paper = {**ALONE, "iteration": 1}
    (found,) = gained(0.3, 0.3, SEARCHED, even)
    assert found.outcome == "supported under other conditions"
    assert found.conditions == ("guided generations = 4, paper 0", "rounds = 1, paper 4")
    (found,) = gained(0.3, 0.3, paper, even, conditions=("model = x, paper y",))
    assert found.conditions == ("rounds = 1, paper 4", "model = x, paper y")


def test_the_answer_names_the_best_model_without_a_search():
    steps = {1.0: [], 2.0: [SEARCHED], 2.3: [{**ALONE, "searched": 0}]}
    rows = describe_all(
        Subject(str(loss), history, {"test": np.full(6, loss)}) for loss, history in steps.items()
    )
    said = answer(Comparison(rows, 100), [])
    assert said.startswith("With 50 % of heads and neurons removed, the searched model has")
    assert "of 7.39 (dense 2.72), -25.9 [-25.9, -25.9] %" in said
    assert said.endswith("the best without a search, Týr supernet, even.")
    assert answer(Comparison(rows[:1], 100), []) == ""
