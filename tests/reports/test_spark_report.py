"""Verdicts of the SparK report on rows made by hand."""

import dataclasses

import pytest
from said import flat

from effllm.modules.kvcache.compression import Compression
from effllm.modules.kvcache.formats.base import Dense
from effllm.modules.kvcache.formats.spark import SparkKeys
from effllm.modules.kvcache.formats.think import ThinkKeys
from effllm.pipelines.reports.paired import Paired
from effllm.pipelines.reports.spark.claims import answer, run_conditions, verdicts
from effllm.pipelines.reports.spark.study import Study
from effllm.pipelines.reports.spark.tables import answer_table
from effllm.pipelines.stages.described import describe

ARMS = {
    "dense": Compression(keys=Dense(), values=Dense()),
    "spark_80": Compression(keys=SparkKeys(ratio=0.8), values=Dense()),
    "think_for_80": Compression(keys=ThinkKeys(share=0.344), values=Dense()),
}
CLAIM = "answers more than ThinK"


def study(scores, *, size=None, prompts=40, texts=0):
    """Arms with a share of right answers each, and bytes over the dense cache's."""
    about = {name: describe(one) for name, one in ARMS.items()}
    held = {"dense": 1000, "spark_80": 700, "think_for_80": 700, **(size or {})}
    rows = {
        name: [
            {"score": float(n < scores[name] * prompts), "bytes": held[name], "context_tokens": 1}
            for n in range(prompts)
        ]
        for name in ARMS
    }
    text = {
        name: [
            {"kl": 0.0, "nll": 1.0, "agree": 1.0, "bytes": held[name], "context_tokens": 1}
            for _ in range(texts)
        ]
        for name in ARMS
    }
    return Study(Paired(text, 500), Paired(rows, 500), {}, about, {"question_inside": False})


def outcomes(answers, main_scores=None):
    usual = {"dense": 0.6, "spark_80": 0.5, "think_for_80": 0.1}
    found = flat(verdicts(study(main_scores or usual, texts=6), answers))
    return {one.claim: one for one in found}


def the(found, words):
    (verdict,) = (one for claim, one in found.items() if words in claim)
    return verdict


@pytest.mark.parametrize(
    ("spark", "think", "size", "outcome"),
    [
        (0.5, 0.1, 700, "supported under other conditions"),
        (0.1, 0.5, 700, "not supported under other conditions"),
        (0.5, 0.5, 700, "inconclusive"),
        (0.5, 0.1, 800, "inconclusive"),  # it was allowed more bytes
    ],
)
def test_more_answers_count_at_equal_bytes_only(spark, think, size, outcome):
    scores = {"dense": 0.6, "spark_80": spark, "think_for_80": think}
    found = outcomes(study(scores, size={"spark_80": size}, prompts=200))
    assert the(found, CLAIM).outcome == outcome
    assert "200 prompts" in the(found, CLAIM).evidence


def test_the_larger_set_of_prompts_decides_on_the_loss_if_it_has_any():
    loss = "the loss against the full cache is under 5 % of answers"
    kept = {"dense": 0.6, "spark_80": 0.6, "think_for_80": 0.1}
    held = "supported under other conditions"
    assert the(outcomes(study(kept, prompts=300)), loss).outcome == held
    worse = {**kept, "spark_80": 0.2}
    assert the(outcomes(study(kept, prompts=300), worse), loss).outcome == held
    found = outcomes(study(kept, prompts=0), worse)  # every prompt was beyond the full cache
    assert the(found, loss).outcome == f"not {held}" and not any(CLAIM in one for one in found)


def test_conditions_of_the_keys_and_of_the_run_stand_in_the_verdict():
    differs = run_conditions("smollm2_135m", "ours", inside=False)
    scores = {"dense": 0.6, "spark_80": 0.5, "think_for_80": 0.1}
    here = dataclasses.replace(study(scores, texts=6), conditions=differs)
    found = {one.claim: one for one in flat(verdicts(here, here))}
    smaller = the(found, "% smaller")
    assert smaller.outcome == "supported under other conditions"
    assert smaller.conditions == (
        "keys = around their mean, paper as they are",
        "last tokens dense = 32, paper 0",
        "group of queries = rms, paper mean_signed",
        "model = smollm2_135m, paper Meta-Llama-3-8B-Instruct or Llama-3.1-8B-Instruct",
        "prompts = ours, paper longbench",
        "question = after it, paper inside the compressed prompt",
    )
    assert the(found, "% of perplexity (ours)").conditions == ()
    assert run_conditions("Llama-3.1-8B-Instruct", "longbench", inside=True) == ()


def test_answers_of_pairs_stand_side_by_side():
    scores = {"dense": 0.6, "spark_80": 0.5, "think_for_80": 0.1}
    table = answer_table(study(scores), [("spark_80", "think_for_80"), ("spark_80", "absent")])
    (row,) = table.rows
    assert row[1] == "1.000" and row[2].startswith("50.0") and row[4].startswith("+40.0")


def test_the_answer_takes_the_larger_set_of_prompts():
    scores = {"dense": 0.6, "spark_80": 0.5, "think_for_80": 0.1}
    assert answer(study(scores, texts=6), study(scores)) == ""  # 4-bit keys did not run
    here, more = (
        dataclasses.replace(one, about={**one.about, "int4": one.about["think_for_80"]})
        for one in (study(scores, texts=6), study(scores | {"spark_80": 0.3}, prompts=200))
    )
    for one in (here, more):
        for arms in (one.texts.arms, one.prompts.arms):
            arms["int4"] = arms["think_for_80"]
    said = answer(here, more)
    assert "30.0 % fewer bytes: +0.0 [" in said and "-30.0 [" in said and "of 60.0 %" in said
    assert "at 1.00 of their bytes" in said and "+20.0 [" in said
