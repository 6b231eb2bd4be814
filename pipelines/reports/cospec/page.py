"""The CoSpec page: question and answer, claims, every rule of every pair, headroom, the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.cospec import claims, figures, tables
from effllm.pipelines.reports.cospec.study import Study
from effllm.pipelines.reports.frame import cost, smoke_warning
from effllm.pipelines.reports.page import Heading, Page, Text
from effllm.pipelines.reports.verdicts import shown_at


def build(studies: Sequence[Study], results: Sequence[Artifact], scale: str, folder: Path) -> Page:
    """The whole page; figures are drawn into `folder`."""
    page = Page(
        "CoSpec: a learned choice between draft and target",
        f"{', '.join(study.name for study in studies)}, scale {scale}, greedy. Every figure was "
        "measured by effllm, except under “Beside the paper”.",
    )
    page.add(*smoke_warning(scale))
    page.add(Text(claims.WHAT_IT_SHOWS))
    if scale != "smoke":
        page.add(Text(claims.answer(studies)))
    for study in studies:
        page.add(Heading(f"Every rule on {study.name}"), tables.main_table(study))
    page.add(Heading("Claims, and what these numbers say"))
    page.add(
        Text(
            "“Right more often than the target” is said only if three lower 95 % bounds on test "
            "problems are above 0: of the gain over the target, over random choices at the same "
            "rate, and over self-arbitration, where the same policy and training choose between "
            "the target's own first and second token."
        )
    )
    page.add(*shown_at(scale, claims.verdicts(studies)))
    page.add(Heading("Headroom, before any reinforcement"), tables.headroom_table(studies))
    page.add(figures.draw_headroom(studies, folder))
    page.add(Heading("Right answers against predicted speed"))
    page.add(figures.draw_frontier(studies, folder))
    page.add(Heading("Policies, seed by seed"), tables.seeds_table(studies))
    page.add(*figures.draw_learning(studies, folder))
    page.add(Heading("What the policy leans on"), tables.leaning_table(studies))
    page.add(figures.draw_reliability(studies, folder))
    page.add(Heading("Arbitrated problems"))
    for study in studies:
        page.add(*tables.texts(study))
    page.add(Heading("Known from the paper, designed here"), tables.known_table())
    page.add(Heading("Beside the paper"), tables.paper_table())
    page.add(Heading("Cost and provenance"), cost(results))
    return page
