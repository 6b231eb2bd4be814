"""What decoders cost in right answers: item by item beside plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.reports.arms import Arm
from effllm.pipelines.reports.decoding import Bench, Rows, interval
from effllm.pipelines.reports.fly import answers_kept, run_conditions
from effllm.pipelines.reports.page import Table, Verdict
from effllm.pipelines.reports.verdicts import decide


def gather_answers(results: Sequence[Artifact], resamples: int) -> Bench:
    """All evaluations as arms; plain decoding is `plain`, sets of items are groups."""
    rows: Rows = []
    described = {}
    for one in results:
        if one.manifest["stage"] != "evaluate_generation":
            continue
        assert isinstance(one, Predictions)
        about = one.subject["arm"]
        arm = one.label if Arm("", about).speculates else "plain"
        described[arm] = about
        answers = {(row["task"], row["id"]): row for row in one.read_rows("answers.jsonl")}
        for row in one.rows():
            name = row["set"]  # `<task>` or `<task>/<way of reading>`
            answer = answers[name.partition("/")[0], row["id"]]
            rows.append(
                {
                    **answer,
                    "set": arm,
                    "group": name,
                    "id": (name, row["id"]),
                    "correct": row["correct"],
                    "emitted": max(answer["tokens"] - 1, 0),  # the prompt's pass gives the first
                }
            )
    return Bench.of(rows, described, resamples)


def answer_table(bench: Bench) -> Table:
    """Right answers of every decoder, the paired change, and what its passes gave."""
    body = []
    for arm, about in bench.about.items():
        cells = [about.title]
        for group in bench.groups:
            items = bench.only(group)
            cells.append(interval(items.mean(arm, "correct"), 1, scale=100))
            change = items.change(arm, "plain", "correct")
            cells.append("" if arm == "plain" else interval(change, 1, sign=True, scale=100))
        cells.append("" if arm == "plain" else str(_same_texts(bench, arm)))
        cells.append(interval(bench.per(arm, "emitted", "rounds"), 2))
        cells.append("" if about.lossless else interval(bench.per(arm, "loosened", "tokens"), 3))
        body.append(cells)
    columns = ["Decoder"]
    for group in bench.groups:
        columns += [f"{group}, right, %", "change, points"]
    columns += ["same texts", "tokens per pass", "loosened per token"]
    return Table(
        columns,
        body,
        note=f"{len(bench.arms['plain'])} answers of each decoder, greedy; 95 % "
        "intervals over items, changes against plain decoding paired by item.",
        strong=frozenset(i for i, one in enumerate(bench.about.values()) if one.is_fly),
    )


def verdicts(bench: Bench, target: str) -> list[Verdict]:
    """Exact decoders must write plain decoding's answers; loosened ones may lose a few.

    Args:
        bench: the answers.
        target: name of the target model.
    """
    found = []
    for arm, about in bench.about.items():
        if arm == "plain":
            continue
        if about.lossless:
            same, items = _same_texts(bench, arm), len(bench.arms[arm])
            found.append(
                decide(
                    f"{about.title}: every answer is plain decoding's own.",
                    f"{same} of {items} texts are the same.",
                    holds=same == items,
                    fails=same < items,
                )
            )
            continue
        for group in bench.groups:
            differs = run_conditions(target, group.partition("/")[0])
            found += [
                replace(one, evidence=f"{group}: {one.evidence}")
                for one in answers_kept(replace(bench.only(group), conditions=differs), about)
            ]
    return found


def result_rows(bench: Bench) -> list[dict[str, Any]]:
    """Rows of `results.json`, one per decoder."""
    found = []
    for arm, about in bench.about.items():
        measures = {"tokens_per_pass": bench.per(arm, "emitted", "rounds")}
        for group in bench.groups:
            items = bench.only(group)
            measures[f"{group}/correct"] = items.mean(arm, "correct")
            measures[f"{group}/correct_over_plain"] = items.change(arm, "plain", "correct")
        known = {key: one for key, one in measures.items() if one is not None}
        found.append(
            {
                "paper": "fly_accuracy",
                "method": about.title,
                "lossless": about.lossless,
                "metrics": {key: one.value for key, one in known.items()},
                "intervals": {key: one.ends for key, one in known.items()},
                "n": len(bench.arms[arm]),
            }
        )
    return found


def _same_texts(bench: Bench, arm: str) -> int:
    pairs = zip(bench.arms[arm], bench.arms["plain"], strict=True)
    return sum(one["text"] == other["text"] for one, other in pairs)
