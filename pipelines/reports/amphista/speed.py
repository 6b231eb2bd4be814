"""Decoding with drafting heads: speed, and tokens per pass beside what the trees promised."""

from __future__ import annotations

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.reports.amphista.scores import AMPHISTA, Study
from effllm.pipelines.reports.decoders.bench import Bench
from effllm.pipelines.reports.decoders.naming import Arm, head_title
from effllm.pipelines.reports.page import Table, Verdict
from effllm.pipelines.reports.table import Column, make_table
from effllm.pipelines.reports.verdicts import judge
from effllm.pipelines.reports.words import show


def promise_table(bench: Bench, study: Study) -> Table:
    """Tokens per pass while decoding, beside those counted at every position of test texts."""

    def promised(arm: str) -> Interval | None:
        title, nodes = _title(bench.about[arm]), bench.about[arm].tokens
        return study.tau(title, nodes) if title in study.arms and nodes in study.nodes else None

    return make_table(
        [arm for arm, about in bench.about.items() if about.by_heads],
        Column("Tokens per pass", lambda arm: bench.about[arm].title),
        Column("at every position of test texts", promised, ".2f", best=max),
        Column("while decoding the prompts", bench.acceptance_length, ".2f", best=max),
        note="Test texts are cut where they begin to loop, decoded ones are not; the prompts are "
        "of other kinds than the requests that heads learnt from; and decoding visits only the "
        "positions after a pass's last token. First column: mean over training seeds.",
    )


def verdicts(bench: Bench) -> list[Verdict]:
    """Faster than plain decoding, and Amphista than what is simpler."""
    heads = [arm for arm, about in bench.about.items() if about.by_heads]
    found = [_faster(bench, arm, "plain") for arm in heads]
    for arm in heads:
        for other in (*heads, "lookup"):
            mine = bench.about[arm]
            if other not in bench.about or _title(mine) != AMPHISTA:
                continue
            theirs = bench.about[other]
            same_size = not theirs.by_heads or theirs.tokens == mine.tokens
            if _title(theirs) != AMPHISTA and same_size:
                found.append(_faster(bench, arm, other))
    return found


def _faster(bench: Bench, arm: str, other: str) -> Verdict:
    ratio = bench.speed_ratio(arm, other)
    names = [bench.about[name].title for name in (arm, other)]
    claim = f"{names[0]} decodes faster than {names[1]}."
    return judge(claim, ratio, f"{show(ratio, '.2f')}.", above=1)


def _title(about: Arm) -> str:
    """The heads that draft; empty for other arms."""
    draft = about.about["draft"]
    return head_title(draft["heads"], draft["settings"]) if about.by_heads else ""
