"""Names and verdicts of the SDS report."""

import numpy as np
import pytest
from said import flat

from effllm.modules.errors import DataError
from effllm.pipelines.reports.models.comparison import Comparison
from effllm.pipelines.reports.models.subjects import Subject
from effllm.pipelines.reports.sds.claims import answer, verdicts
from effllm.pipelines.reports.sds.names import describe

PRUNE = {"stage": "prune", "pruner": "wanda", "pattern": "2:4"}
REDENSE = {
    "stage": "redense",
    "inputs": "sparse",
    "start": "sparse",
    "l1_weight": 0.1,
    "l2_weight": 0.0,
    "steps": 200,
    "accelerated": False,
}
ADJUST = {"stage": "adjust", "steps": 10, "refit_steps": 10, "space": "scaled"}
REFIT = {**ADJUST, "steps": 0}


@pytest.mark.parametrize(
    ("history", "variant", "method"),
    [
        ([], "", "Dense"),
        ([PRUNE], "prune", "Wanda"),
        ([PRUNE, REFIT], "refit", "Wanda + refit"),
        ([PRUNE, ADJUST], "iht", "Wanda + IHT"),
        ([PRUNE, REFIT, REFIT], "refit_2", "Wanda + refit twice"),
        ([PRUNE, REFIT, REFIT, REFIT], "refit_3", "Wanda + refit three times"),
        ([PRUNE, REDENSE], "redense", "Wanda, re-dense only (D)"),
        ([PRUNE, REDENSE, PRUNE], "early_exit", "SDS early exit (Wanda)"),
        ([PRUNE, REDENSE, PRUNE, ADJUST], "sds", "SDS (Wanda)"),
        (
            [PRUNE, {**REDENSE, "inputs": "dense"}, PRUNE, ADJUST],
            "sds_variant",
            "SDS (Wanda, DD inputs)",
        ),
        (
            [{**REDENSE, "start": "dense", "inputs": "other"}, PRUNE, ADJUST],
            "s_ds",
            "SDS (Wanda, started dense (S-DS))",
        ),
        (
            [{**REDENSE, "start": "dense", "inputs": "dense"}, PRUNE, ADJUST],
            "sds_variant",
            "SDS (Wanda, started dense (S-DS), DD inputs)",
        ),
        ([{**REDENSE, "start": "dense"}], "redense_variant", "Dense, re-densed (S-DS)"),
    ],
)
def test_models_are_named_by_what_was_done_to_them(history, variant, method):
    row = describe(Subject("model/0", history))
    assert (row.variant, row.method) == (variant, method)


def test_controls_are_judged_in_other_words_and_in_accuracy_too():
    random = np.random.default_rng(0)
    base = random.normal(4, 0.3, 40)
    correct = (random.random(200) < 0.5).astype(float)

    def subject(label, history, shift, right):
        return Subject(label, history, {"test": base + shift, "heldout": base, "task": right})

    rows = [
        describe(subject("a", [PRUNE], 0.3, correct)),
        describe(subject("b", [PRUNE, REFIT], -0.3, correct)),
        describe(subject("c", [PRUNE, REDENSE, PRUNE, ADJUST], 0.0, correct)),
    ]
    found = {one.claim: one for one in flat(verdicts(Comparison(rows, 1000)))}
    outcomes = {claim: one.outcome for claim, one in found.items()}
    assert outcomes["SDS beats one-shot Wanda in perplexity."] == "reproduced"
    assert outcomes["SDS beats one-shot Wanda in accuracy."] == "inconclusive"
    control = "The re-dense step earns its place: SDS beats Wanda + refit of the first mask"
    assert outcomes[f"{control} in perplexity."] == "not supported"
    assert outcomes[f"{control} in accuracy."] == "inconclusive"
    differs = ("model = smollm2_135m, paper opt-125m",)
    there = {one.claim: one for one in flat(verdicts(Comparison(rows, 1000, differs)))}
    claim = "SDS beats one-shot Wanda in perplexity."
    assert there[claim].outcome == "supported under other conditions"
    assert there[claim].conditions == differs
    rows[-1].subject.history[1] = {**REDENSE, "steps": 30, "accelerated": True}
    (redense, _) = flat(verdicts(Comparison(rows, 1000, differs)))[0].conditions
    assert redense == "re-dense step = 30 accelerated steps, paper 200 plain steps"


def test_intervals_draw_documents_and_one_document_window_by_window():
    base = np.random.default_rng(0).normal(4, 0.3, 12)

    def interval(documents):
        subject = Subject("a", [PRUNE], {"test": base}, {"test": documents} if documents else {})
        data = Comparison([describe(subject)], 1000)
        return data.perplexity(data.rows[0]), data.counted("test") if documents else ""

    apart, _ = interval([])
    assert interval(list("abcdefghijkl")) == (apart, "12 windows of 12 documents")
    assert interval(["a"] * 12) == (apart, "12 windows of one document, drawn one by one")
    order = np.argsort(base)  # windows of a document resemble each other
    alike = [""] * 12
    for place, window in enumerate(order):
        alike[window] = "abcdef"[place // 2]
    wider, counted = interval(alike)
    assert wider.high - wider.low > 1.2 * (apart.high - apart.low)
    assert counted == "12 windows of 6 documents"
    four, counted = interval(list("abcd" * 3))
    assert not four.known and counted == "12 windows of 4 documents"


def test_models_measured_on_different_windows_are_not_compared():
    rows = [
        describe(Subject(label, [PRUNE], {"test": np.ones(2)}, {"test": documents}))
        for label, documents in (("one/0", ["a", "b"]), ("other/0", ["a", "c"]))
    ]
    with pytest.raises(DataError, match="one/0 and other/0 were measured on different test"):
        Comparison(rows, 100).relative(*rows)


def test_the_answer_sets_sds_beside_one_shot_pruning_and_its_control():
    base = np.random.default_rng(0).normal(4, 0.3, 40)
    histories = {
        0.3: [PRUNE],
        -0.1: [PRUNE, REFIT, REFIT, REFIT],
        0.0: [PRUNE, REDENSE, PRUNE, ADJUST],
    }
    rows = [
        describe(Subject(str(shift), history, {"test": base + shift}))
        for shift, history in histories.items()
    ]
    said = answer(Comparison(rows, 100))
    assert said.startswith("On Wanda SDS has a test perplexity of ")
    assert "-25.9 [-25.9, -25.9] % against one-shot" in said and "+10.5 [" in said
    assert answer(Comparison(rows[:2], 100)) == ""  # no SDS, no answer
