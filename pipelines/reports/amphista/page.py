"""The page: the question and its answer, equal trees, verdicts, and what stands behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports import decoding
from effllm.pipelines.reports.amphista import claims, figures, speed, tables
from effllm.pipelines.reports.amphista.scores import AMPHISTA, Study
from effllm.pipelines.reports.frame import cost, smoke_warning
from effllm.pipelines.reports.page import Heading, Page, Text
from effllm.pipelines.reports.verdicts import model_and_texts, short_name, shown_at


def write_page(
    results: Sequence[Artifact], scale: str, resamples: int, folder: Path
) -> tuple[Page, list[dict[str, Any]]]:
    """The report of a run.

    Args:
        results: all of them.
        scale: smoke, cpu or paper.
        resamples: of the bootstrap.
        folder: for figures.

    Returns:
        The page, and the rows of `results.json`.
    """
    study = Study.of(results, resamples)
    target = model_and_texts(results)["model"]
    page = Page(
        "Amphista: drafting heads that see each other",
        f"{target}, scale {scale}, greedy text of its own. Every figure was measured by effllm, "
        "except under “Beside the paper”.",
    )
    page.add(*smoke_warning(scale), Text(claims.answer(study)))
    page.add(Heading("Tokens per pass at equal trees"), tables.tau_table(study))
    if AMPHISTA in study.arms:
        page.add(tables.gain_table(study))
    bench = speed.bench_of(results, resamples)
    verdicts = claims.verdicts(study, short_name(target))
    if bench is not None:
        verdicts += speed.verdicts(bench)
    claimed = Heading("What the paper claims, and what these numbers say")
    page.add(claimed, *shown_at(scale, verdicts))
    page.add(figures.draw_tau(study, folder))
    page.add(Heading("How often each head is right"), tables.accuracy_table(study))
    page.add(figures.draw_curves(study, folder))
    if AMPHISTA in study.arms:
        page.add(Heading("The tree"), figures.draw_tree(study, claims.middle(study), folder))
    if bench is not None:
        page.add(Heading("Decoding"), decoding.speed_table(bench))
        page.add(speed.promise_table(bench, study), decoding.cost_table(bench))
        page.add(decoding.group_table(bench), decoding.text_table(bench))
    page.add(Heading("The texts"), Text(_texts(results)))
    page.add(Heading("Beside the paper"), tables.paper_table())
    page.add(Heading("Cost and provenance"), cost(results))
    return page, result_rows(study)


def result_rows(study: Study) -> list[dict[str, Any]]:
    """Rows of `results.json`: `{paper, method, pattern, seed, metrics, intervals, n, artifact}`."""
    found = []
    for arm, mine in study.arms.items():
        measures = {f"tau/{count}": study.tau(arm, count) for count in study.nodes}
        heads = int(mine[0].heads.about["settings"]["heads"])
        measures |= {f"top1/{head}": study.right(arm, head) for head in range(1, heads + 1)}
        found.append(
            {
                "paper": "amphista",
                "method": arm,
                "title": arm,
                "pattern": "",
                "seed": [one.seed for one in mine],
                "metrics": {
                    "parameters": study.parameters(arm),
                    **{key: one.value for key, one in measures.items()},
                },
                "intervals": {key: one.ends for key, one in measures.items()},
                "n": dict.fromkeys(measures, study.texts),
                "artifact": [one.scores.label for one in mine],
            }
        )
    return found


def _texts(results: Sequence[Artifact]) -> str:
    """What heads learnt from and were judged on."""
    said = []
    for one in results:
        if one.manifest["stage"] == "cache_hidden_states":
            found = one.manifest["metrics"]
            said.append(
                f"{found['texts']} texts with {found['answer_tokens']:,} tokens of answers "
                f"({found['tokens']:,} with prompts; {100 * found['looping_texts']:.0f} % of the "
                "texts were cut where they began to loop)"
            )
    names = ("Learnt from", "trees chosen on", "figures counted on")
    return "; ".join(f"{name} {text}" for name, text in zip(names, said, strict=False)) + "."
