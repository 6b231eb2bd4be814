"""The claim rule of the CoSpec report, on tables of verdicts made by hand."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from said import bold, flat

from effllm.pipelines.reports.cospec import claims, tables
from effllm.pipelines.reports.cospec.page import ReportCospec
from effllm.pipelines.reports.cospec.study import ONE_NUMBER, TITLES, Study
from effllm.pipelines.reports.table import published_tables

N, SEEDS = 1000, 5


def study_of(name="toy", gate_open=True, best=None, **won):
    """Target right in half of the problems; every rule wins so many more, the rest is the same."""
    base = np.zeros((1, N))
    base[:, : N // 2] = 1

    def wins(count, seeds):
        found = base.repeat(seeds, axis=0)
        if count < 0:
            found[:, :-count] = 0
        else:
            found[:, N // 2 : N // 2 + count] = 1
        return found

    several = ("cospec", "rl", "warm", "random", "self_rl")
    right = {rule: wins(won.get(rule, 0), SEEDS if rule in several else 1) for rule in TITLES}
    columns = ("blocks", "calls", "tokens", "decisions", "accepted")
    counts = {
        rule: {column: np.full(values.shape, 2.0) for column in columns}
        for rule, values in right.items()
        if rule not in ("draft", "oracle", "oracle_one")
    }
    point = {"bound": 0.0, "threshold": "never", "gain": 0.0}
    rules = {rule: [{"seed": None, "validation": dict(point)}] for rule in counts}
    rules["chow"][0]["validation"]["bound"] = 0.1
    return Study(
        name=name,
        right=right,
        counts=counts,
        rules=rules,
        headroom={},
        figures={"gate_open": gate_open},
        pair={
            "best_accuracy": best,
            "costs": {"verified": 0.0, "draft": 0.25, "policy": 0.0, "block": 4},
        },
        curves=[],
        verdicts=None,
        resamples=500,
    )


@pytest.mark.parametrize(
    ("won", "outcome"),
    [
        ({"cospec": 60}, "supported under other conditions"),
        ({"cospec": 60, "random": 60}, "inconclusive"),
        ({"cospec": 60, "self_rl": 60}, "inconclusive"),
        ({"cospec": 60, "self_rl": 120}, "not supported under other conditions"),
        ({"cospec": -60, "random": -120}, "not supported under other conditions"),
        ({}, "matches"),
        ({"cospec": 3}, "matches"),
    ],
)
def test_more_than_the_target_is_not_enough(won, outcome):
    verdict = claims.surpasses(study_of(**won))
    assert verdict.outcome == outcome
    if outcome != "inconclusive":
        assert any("Llama 70B" in one for one in verdict.conditions)


def test_each_pair_gets_its_verdicts():
    found = flat(
        claims.verdicts(
            [
                study_of("fake", best=0.555, cospec=60),
                study_of("toy", cospec=60, chow=90, rl=40),
                study_of("toy_null", gate_open=False),
            ]
        )
    )
    by_claim = {one.claim: one.outcome for one in found}
    assert by_claim["fake: the shipped policy is within one point of the best there can be."] in (
        "supported",
        "inconclusive",
    )
    (beaten,) = [
        one for claim, one in by_claim.items() if "toy: the policy beats the best" in claim
    ]
    assert beaten == "not supported"
    assert by_claim["toy_null: reinforcement adds right answers to the warm start."] == "no verdict"
    assert by_claim["toy: reinforcement adds right answers to the warm start."] == "supported"


def test_the_answer_names_controls_that_are_ahead():
    text = claims.answer([study_of(cospec=60, chow=90)])
    assert "+6.0" in text and f"ahead of it: {TITLES['chow']}" in text
    assert "ahead" not in claims.answer([study_of(cospec=60)])


def test_the_main_table_holds_every_rule_with_its_changes():
    table = tables.main_table(study_of(cospec=60, difference=-20, oracle=90))
    rows = {row[0]: row for row in table.rows}
    assert len(rows) == len(TITLES)
    assert rows[TITLES["cospec"]][3] == "60 : 0" and rows[TITLES["difference"]][3] == "0 : 20"
    assert bold(table) == {"right, %": [TITLES["cospec"]]}  # an oracle cannot be used
    # Two blocks of 1 + 4 * .25 target steps for one token after the first.
    assert rows[TITLES["target"]][-1] == "0.25"


def test_every_rule_of_one_number_has_a_title():
    assert set(ONE_NUMBER) < set(TITLES)


def test_figures_about_the_paper_are_all_labelled():
    found = published_tables(Path(inspect.getfile(ReportCospec)).parent)
    assert len(found) == 3 and all("not checked" in table.note for table in found)
