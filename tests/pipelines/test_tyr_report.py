"""How rows of the Týr report are named."""

import pytest

from effllm.pipelines.reports.subjects import Subject
from effllm.pipelines.reports.tyr import describe_all

SEARCHED = {
    "stage": "export_compact",
    "sparsity": 0.5,
    "levels": 9,
    "searched": 1,
    "guided": 4,
    "iteration": 1,
    "score": "official",
    "accumulation": "expectation",
    "accumulate_at": "sublayer",
    "refit": True,
    "attention_unit": "head",
    "layout": "compact",
}
ALONE = {**SEARCHED, "guided": 0}


def names(*steps):
    return [
        (row.base, row.method)
        for row in describe_all(Subject(str(n), [step]) for n, step in enumerate(steps))
    ]


@pytest.mark.parametrize("step", [SEARCHED, ALONE])
def test_the_only_search_is_the_searched_model(step):
    assert names(step) == [("searched", "Týr, searched")]


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
