"""How rows and searches of the Týr report are named."""

from pathlib import Path

import pytest
from tyr_steps import SEARCHED

from effllm.pipelines.artifacts import Allocation, Artifact, Checkpoint
from effllm.pipelines.reports.subjects import Subject
from effllm.pipelines.reports.tyr import describe_all, searches

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
    assert searches(rows, results) == {
        "Týr, searched, 50 %": second,
        "Týr, searched: evolution alone, 50 %": first,
    }
