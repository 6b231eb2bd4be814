"""The search for a setting and the comparison over seeds, on made-up measurements."""

import numpy as np
import pytest
from said import bold, flat

from effllm.pipelines.reports.models.comparison import Comparison
from effllm.pipelines.reports.models.seeds import seed_differences, seeds_table
from effllm.pipelines.reports.models.subjects import Subject
from effllm.pipelines.reports.sds import studies
from effllm.pipelines.reports.sds.names import describe

PRUNE = {"stage": "prune", "pruner": "wanda", "pattern": "2:4"}
REDENSE = {
    "stage": "redense",
    "inputs": "sparse",
    "start": "sparse",
    "steps": 30,
    "accelerated": True,
    "l1_weight": 0.1,
    "l2_weight": 0.01,
}
ADJUST = {"stage": "adjust", "steps": 5, "refit_steps": 10, "space": "scaled"}
REFIT = {**ADJUST, "steps": 0}


def row(history, heldout, test, seed=0):
    noise = np.linspace(-0.01, 0.01, 8)
    examples = {"heldout": np.log(heldout) + noise, "test": np.log(test) + noise}
    return describe(
        Subject(f"model/{len(history)}{heldout}{seed}", history, examples=examples, seed=seed)
    )


def sds(**changes):
    return [PRUNE, {**REDENSE, **changes}, PRUNE, ADJUST]


def test_the_setting_is_chosen_on_heldout_text_and_never_among_the_controls():
    rows = [
        row([PRUNE], 170, 140),
        row([PRUNE, REFIT, REFIT, REFIT], 80, 70),
        row(sds(), 90, 60),
        row(sds(l1_weight=0.03), 88, 75),  # better on held-out text, worse on test text
    ]
    data = Comparison(rows, 200)
    table = studies.search_table(data, "wanda")
    chosen = "SDS: 30 accelerated steps, L1 0.03, L2 0.01"
    assert bold(table) == {"S3 or control": [chosen]}
    (row_of_it,) = [line for line in table.rows if line[0] == chosen]
    change = row_of_it[table.columns.index("vs refit three times, %")]
    assert float(change.split()[0]) == pytest.approx(10.0)
    text = studies.chosen_on_test(data, "wanda")
    assert "L1 0.03" in text and "75.00" in text and "+7.1" in text


def test_differences_are_paired_by_seed_with_an_interval_over_seeds():
    rows = []
    for seed, (ours, control) in enumerate([(81, 90), (80, 90), (79, 90)]):
        rows += [row(sds(), 90, ours, seed), row([PRUNE, REFIT], 90, control, seed)]
    data = Comparison(rows, 200)
    change, each = seed_differences(data, ("wanda", "sds"), ("wanda", "refit"))
    assert each == pytest.approx([-10, -100 / 9, -110 / 9])
    assert change.low < change.value < change.high < 0
    verdicts = flat(studies.seeds_verdicts(data))
    assert [one.outcome for one in verdicts] == ["supported"]
    spread = studies.pooled_spread(data)  # one comparison: that of its three differences
    assert "Over these 1 comparisons" in spread and f"{np.std(each, ddof=1):.1f} points" in spread
    table = seeds_table(data, data.rows)
    assert list(table.columns) == [
        "Test perplexity",
        "seed 0",
        "seed 1",
        "seed 2",
        "mean",
        "spread, %",
    ]
    one_seed = Comparison(rows[:2], 200)
    assert seed_differences(one_seed, ("wanda", "sds"), ("wanda", "refit"))[0] is None


def test_sds_started_dense_is_a_method_of_its_own_over_seeds():
    started_dense = [{**REDENSE, "start": "dense", "inputs": "other"}, PRUNE, ADJUST]
    rows = []
    for seed, (ours, control) in enumerate([(71, 74), (70, 75), (72, 76)]):
        rows += [row(started_dense, 80, ours, seed), row([PRUNE, REFIT], 80, control, seed)]
    verdicts = flat(studies.seeds_verdicts(Comparison(rows, 200)))
    assert [one.claim for one in verdicts] == [
        "SDS started from the dense model (S-DS) beats Wanda + refit of the first mask in "
        "perplexity."
    ]
    assert verdicts[0].outcome == "supported"
