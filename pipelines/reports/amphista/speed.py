"""Decoding with drafting heads: speed, and tokens per pass beside what the trees promised."""

from __future__ import annotations

from collections.abc import Sequence

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.amphista.scores import Study
from effllm.pipelines.reports.arms import Arm, head_title
from effllm.pipelines.reports.decoding import Bench, interval
from effllm.pipelines.reports.page import Table, Verdict
from effllm.pipelines.reports.verdicts import judge


def bench_of(results: Sequence[Artifact], resamples: int) -> Bench | None:
    """The benchmark of a run, if there is one."""
    benched = next((one for one in results if one.manifest["stage"] == "bench_heads"), None)
    if benched is None:
        return None
    rows, arms = benched.read_rows("predictions.jsonl"), benched.read_json("arms.json")
    return Bench.of(rows, arms, resamples)


def promise_table(bench: Bench, study: Study) -> Table:
    """Tokens per pass while decoding, beside those counted at every position of test texts."""
    rows = []
    for arm, about in bench.about.items():
        if about.by_heads:
            measured = bench.acceptance_length(arm)
            title = _title(about)
            known = title in study.arms and about.tokens in study.nodes
            promised = study.tau(title, about.tokens) if known else None
            rows.append([about.title, interval(promised, 2), interval(measured, 2)])
    return Table(
        ["Tokens per pass", "at every position of test texts", "while decoding the prompts"],
        rows,
        note="Test texts are cut where they begin to loop, decoded ones are not; the prompts are "
        "of other kinds than the requests that heads learnt from; and decoding visits only the "
        "positions after a pass's last token. First column: mean over training seeds.",
    )


def verdicts(bench: Bench) -> list[Verdict]:
    """Exact, and faster than what is simpler."""
    found = []
    heads = [arm for arm, about in bench.about.items() if about.by_heads]
    for arm in heads:
        found.append(_faster(bench, arm, "plain"))
    for arm in heads:
        for other in (*heads, "lookup"):
            mine = bench.about[arm]
            if other not in bench.about or _title(mine) != "Amphista":
                continue
            theirs = bench.about[other]
            same_size = not theirs.by_heads or theirs.tokens == mine.tokens
            if _title(theirs) != "Amphista" and same_size:
                found.append(_faster(bench, arm, other))
    return found


def _faster(bench: Bench, arm: str, other: str) -> Verdict:
    ratio: Interval = bench.speed_ratio(arm, other)
    names = [bench.about[one].title for one in (arm, other)]
    return judge(f"{names[0]} decodes faster than {names[1]}.", 1 - ratio, f"{interval(ratio, 2)}.")


def _title(about: Arm) -> str:
    """The heads that draft; empty for other arms."""
    draft = about.about["draft"]
    return head_title(draft["heads"], draft["settings"]) if about.by_heads else ""
