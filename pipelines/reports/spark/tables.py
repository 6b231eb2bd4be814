"""Tables and rows of the SparK report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.page import Table
from effllm.pipelines.reports.paired import Paired
from effllm.pipelines.reports.results import ResultRow
from effllm.pipelines.reports.spark.names import arm_name, dense_arms
from effllm.pipelines.reports.spark.study import FLOOR, Study
from effllm.pipelines.reports.table import Cell, Column, columns, make_table


def quality_table(study: Study, note: str = "") -> Table:
    """Bytes beside what they buy."""
    return make_table(
        study.about,
        Column("Cache", study.title),
        Column("bytes per token", lambda arm: f"{study.bytes_per_token(arm):,.0f}"),
        Column("saved, %", _but_dense(study.saving), ".1%"),
        Column("KL, nats", lambda arm: study.texts.mean(arm, "kl"), ".4f"),
        Column(
            "perplexity, %", _but_dense(lambda arm: study.perplexity_change(arm, "dense")), "+.1%"
        ),
        Column("same top token, %", lambda arm: study.texts.mean(arm, "agree").value, ".1%"),
        Column("answers, %", study.score, ".1%"),
        note=note,
    )


def pair_table(study: Study, pairs: Sequence[tuple[str, str]]) -> Table:
    """Differences of two arms on the same examples."""

    def less(pair: tuple[str, str]) -> str:
        ours, others = (study.texts.values(arm, "kl") for arm in pair)
        return f"{int((ours < others).sum())} of {len(ours)}"

    return make_table(
        [pair for pair in pairs if study.has(*pair)],
        *_pair_columns(study),
        Column("KL, difference", lambda pair: study.texts.change(pair[0], pair[1], "kl"), "+.4f"),
        Column("windows with less KL", less),
        Column("perplexity, %", lambda pair: study.perplexity_change(*pair), "+.1%"),
        Column("answers, points", lambda pair: study.score_change(*pair), "+.1%"),
        note="Paired by example: negative KL and positive answers favour the first.",
    )


def answer_table(study: Study, pairs: Sequence[tuple[str, str]]) -> Table:
    """Answers of two arms to the same prompts."""
    return make_table(
        [pair for pair in pairs if study.has(*pair)],
        *_pair_columns(study),
        Column("answers, %", lambda pair: study.score(pair[0]), ".1%"),
        Column("of the other, %", lambda pair: study.score(pair[1]), ".1%"),
        Column("points", lambda pair: study.score_change(*pair), "+.1%"),
        note=f"{study.prompted} prompts, paired; positive points favour the first.",
    )


def _pair_columns(study: Study) -> list[Column]:
    return [
        Column("Pair", lambda pair: f"{study.title(pair[0])} against {study.title(pair[1])}"),
        Column("bytes, ratio", lambda pair: study.bytes_ratio(*pair), ".3f"),
    ]


def _but_dense(figure: Callable[[str], Cell]) -> Callable[[str], Cell]:
    """Of all arms but the one that the others are measured against."""
    return lambda arm: None if arm == "dense" else figure(arm)


def task_table(study: Study) -> Table | None:
    """Answers by kind of prompt; None without prompts."""
    if not study.prompted:
        return None
    groups = dict.fromkeys((row["group"], row["length"]) for row in study.prompts.arms["dense"])

    def score(arm: str, group: tuple[str, int]) -> float:
        rows = study.prompts.arms[arm]
        return float(
            np.mean([row["score"] for row in rows if (row["group"], row["length"]) == group])
        )

    inside = "inside" if study.settings["question_inside"] else "after"
    return make_table(
        study.about,
        Column("% of answers", study.title),
        *columns(
            {group: f"{group[0].replace('_', ' ')}, {group[1]}" for group in groups}, score, ".0%"
        ),
        note=f"{study.prompted // len(groups)} prompts each; the question comes {inside} the "
        "compressed cache. An answer counts if greedy decoding would write it, after the true ones "
        "before it.",
    )


def dropped_tasks(study: Study) -> str:
    """Tasks that are left out everywhere, and why."""
    dropped = "; ".join(
        f"{task.replace('_', ' ')} at {length} ({100 * score:.0f} %)"
        for (task, length), score in study.dropped.items()
    )
    reason = f"because the full cache answers under {100 * FLOOR:.0f} %"
    return f"Left out {reason}: {dropped or 'none'}."


def timed(benched: Artifact, length: int) -> Paired:
    """Rows of the timed arms after a prompt of so many tokens."""
    arms: dict[str, list[dict[str, object]]] = {}
    for row in benched.read_rows("predictions.jsonl"):
        if row["length"] == length:
            arms.setdefault(row["set"], []).append(row)
    return Paired(arms, 10_000)


def timing_tables(benched: Artifact) -> list[Table]:
    """Time per decoded token and of the prompt, over the dense caches'; a table for each length."""
    about, steps = benched.read_json("arms.json"), benched.manifest["config"]["steps"]
    dense = dense_arms(about)
    names = sorted(about, key=lambda name: name not in dense)
    lengths = dict.fromkeys(row["length"] for row in benched.read_rows("predictions.jsonl"))

    def table(length: int) -> Table:
        times = timed(benched, length)

        def prompt(name: str) -> float:
            return float(times.arms[name][0]["prefill_seconds"])

        return make_table(
            names,
            Column(f"After {length:,} tokens", lambda name: arm_name(about[name])),
            Column("MB", lambda name: times.arms[name][0]["bytes"] / 1e6, ".1f"),
            Column(
                "ms per token",
                lambda name: 1000 * np.mean(times.values(name, "decode_seconds")) / steps,
                ".1f",
            ),
            *columns(
                {other: f"over {arm_name(about[other])}" for other in dense},
                lambda name, other: (
                    None if name == other else times.over(name, other, "decode_seconds")
                ),
                ".2f",
            ),
            Column("prompt, s", prompt, ".2f"),
            Column(
                "over dense, prompt", _but_dense(lambda name: prompt(name) / prompt("dense")), ".3f"
            ),
            note="Arms take turns after the same prompt; intervals over repeats. Prompt times are "
            "the best of two and include packing.",
        )

    return [table(length) for length in lengths]


def result_rows(study: Study, evaluated: Artifact) -> list[ResultRow]:
    """Rows of `results.json`, an arm each."""
    found = []
    for arm in study.about:
        measures: dict[str, Interval | None] = {
            key: study.texts.mean(arm, key) for key in ("kl", "agree", "nll")
        }
        measures["perplexity_change"] = study.perplexity_change(arm, "dense")
        n = dict.fromkeys(measures, len(study.texts.arms[arm]))
        if study.prompted:
            measures["score"], n["score"] = study.score(arm), study.prompted
        found.append(
            ResultRow(
                paper="spark",
                method=arm,
                title=study.title(arm),
                pattern="",
                seed=evaluated.manifest["seed"],
                artifact=evaluated.label,
                figures={
                    "bytes_per_token": study.bytes_per_token(arm),
                    "saving": study.saving(arm),
                    **measures,
                },
                n=n,
            )
        )
    return found
