"""What decoders cost in right answers: item by item beside plain decoding."""

from __future__ import annotations

from dataclasses import replace

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.reports.decoders.bench import Bench
from effllm.pipelines.reports.decoders.naming import Arm
from effllm.pipelines.reports.fly.claims import answers_kept, run_conditions
from effllm.pipelines.reports.page import Table, Verdict
from effllm.pipelines.reports.paired import Rows
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.table import Column, columns
from effllm.pipelines.reports.verdicts import decide
from effllm.pipelines.reports.words import show


def gather_answers(results: Results, resamples: int) -> tuple[Bench, dict[str, Predictions]]:
    """All evaluations as arms, and the result of each.

    Plain decoding is the arm `plain`; sets of items are groups.
    """
    rows: Rows = []
    described, made = {}, {}
    for read in results.of(Predictions):
        if read.manifest["stage"] != "evaluate_generation":
            continue
        about = read.subject["arm"]
        arm = read.label if Arm("", about).speculates else "plain"
        described[arm], made[arm] = about, read
        answers = {(row["task"], row["id"]): row for row in read.read_rows("answers.jsonl")}
        for row in read.rows():
            name = row["set"]  # `<task>` or `<task>/<way of reading>`
            given = answers[name.partition("/")[0], row["id"]]
            rows.append(
                {
                    **given,
                    "set": arm,
                    "group": name,
                    "id": (name, row["id"]),
                    "correct": row["correct"],
                    "emitted": max(given["tokens"] - 1, 0),  # the prompt's pass gives the first
                }
            )
    return Bench.of(rows, described, resamples), made


def answer_table(bench: Bench) -> Table:
    """Right answers of every decoder, the paired change, and what its passes gave."""
    items = {group: bench.only(group) for group in bench.groups}
    by_group = zip(
        columns(
            {group: f"{group}, right, %" for group in items},
            lambda arm, group: items[group].mean(arm, "correct"),
            ".1%",
            max,
        ),
        columns(
            dict.fromkeys(items, "change, points"),
            lambda arm, group: (
                None if arm == "plain" else items[group].change(arm, "plain", "correct")
            ),
            "+.1%",
        ),
        strict=True,
    )
    return bench.table(
        *(column for pair in by_group for column in pair),
        Column("same texts", lambda arm: "" if arm == "plain" else str(_same_texts(bench, arm))),
        Column("tokens per pass", bench.acceptance_length, ".2f"),
        Column("loosened per 100 tokens", bench.loosened, ".1f"),
        note=f"{len(bench.arms['plain'])} answers of each decoder, greedy; 95 % "
        "intervals over items, changes against plain decoding paired by item.",
    )


def verdicts(bench: Bench, target: str) -> dict[str, list[Verdict]]:
    """Exact decoders must write plain decoding's answers; loosened ones may lose a few.

    Args:
        bench: the answers.
        target: name of the target model.
    """
    exact: list[Verdict] = []
    loosened: list[Verdict] = []
    for arm, about in bench.about.items():
        if arm == "plain":
            continue
        if about.lossless:
            same, items = _same_texts(bench, arm), len(bench.arms[arm])
            exact.append(
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
            loosened += [
                replace(verdict, evidence=f"{group}: {verdict.evidence}")
                for verdict in answers_kept(replace(bench.only(group), conditions=differs), about)
            ]
    return {"Answers of FLy": loosened, "Answers of exact decoders": exact}


def answer(bench: Bench) -> str:
    """What FLy changes in right answers."""
    said = []
    for arm, about in bench.about.items():
        if about.is_fly:
            for group in bench.groups:
                items = bench.only(group)
                change = show(items.change(arm, "plain", "correct"), "+.1%")
                plain = show(items.mean("plain", "correct"), ".1%")
                said.append(
                    f"{about.title} changes right answers of {group} by {change} points; plain "
                    f"decoding has {plain} %."
                )
    return " ".join(said)


def result_rows(bench: Bench, made: dict[str, Predictions]) -> list[ResultRow]:
    """Rows of `results.json`, one per decoder."""
    found = []
    for arm, about in bench.about.items():
        measures: dict[str, Interval | None] = {"tokens_per_pass": bench.acceptance_length(arm)}
        n = {"tokens_per_pass": len(bench.arms[arm])}
        for group in bench.groups:
            items = bench.only(group)
            measures[f"{group}/correct"] = items.mean(arm, "correct")
            measures[f"{group}/correct_over_plain"] = items.change(arm, "plain", "correct")
            n |= dict.fromkeys(
                (f"{group}/correct", f"{group}/correct_over_plain"), len(items.arms[arm])
            )
        known = {key: figure for key, figure in measures.items() if figure is not None}
        found.append(
            ResultRow(
                paper="fly_accuracy",
                method=about.title,
                title=about.title,
                pattern="",
                seed=made[arm].manifest["seed"],
                artifact=made[arm].label,
                figures={"lossless": about.lossless, **known},
                n={key: n[key] for key in known},
            )
        )
    return found


def _same_texts(bench: Bench, arm: str) -> int:
    pairs = zip(bench.arms[arm], bench.arms["plain"], strict=True)
    return sum(one["text"] == other["text"] for one, other in pairs)
