"""What the reports of all papers have in common: one order of the page, one schema of rows."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from effllm.modules.ranges import PositiveInt, Word
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.measured import Report
from effllm.pipelines.files import write_json
from effllm.pipelines.reports.page import Block, Heading, Page, Text, Verdict, Verdicts
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.table import Column, make_table, published_tables
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext

_SHOWN = 6  # stages
_SMOKE = (
    "This is a smoke run: hardly any text and steps, on a tiny random model and random sentences "
    "if no others were given. It shows that the machinery works; its figures mean nothing. No "
    "verdicts at smoke scale."
)
_JUDGED = (
    "Verdicts rest on 95 % intervals over test documents, prompts or problems, of paired "
    "differences. Claims of the paper are reproduced only under its conditions; those that differ "
    "stand at the top of the page, or beside the outcome if they are its own. Supported and not "
    "supported without more are about goals and controls of ours. {more}"
)


@dataclass(frozen=True)
class Findings:
    """What a report says; `ReportStage.run` puts it into the order of all pages.

    Attributes:
        subject: what was measured, for the line below the title.
        answer: to the question of the report, in two sentences with the number that carries it;
            empty if what it needs is missing.
        main: what the answer rests on.
        verdicts: group of claims -> one verdict for each claim.
        judged: what more must be known to read the verdicts.
        sections: title -> what stands there; None and empty sections are left out.
        rows: of `results.json`.
        conditions: of the run that differ from the paper's.
        provenance: more to say about how the results were made.
    """

    subject: str
    answer: str
    main: Sequence[Block | None]
    rows: Sequence[ResultRow]
    verdicts: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)
    judged: str = ""
    sections: Mapping[str, Sequence[Block | None]] = field(default_factory=dict)
    conditions: Sequence[str] = ()
    provenance: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportStage(Stage):
    """Reads results and writes a page about them; `run` is the template of all pages.

    Class constants:
        TITLE: of the page.
        QUESTION: that it answers.
        ARXIV: number of the paper, whose figures are in `paper.csv` beside the class; empty: none.

    Args:
        scale: smoke, cpu or paper; for the title.
        resamples: of the bootstrap.
    """

    INPUTS: ClassVar = {"results": Many(Artifact)}
    OUTPUT: ClassVar = Report
    TITLE: ClassVar[str]
    QUESTION: ClassVar[str]
    ARXIV: ClassVar[str] = ""

    scale: Word
    resamples: PositiveInt

    @abstractmethod
    def find(self, results: Results, figures: Path) -> Findings:
        """Read the results, draw into a folder, and say what they show."""

    def run(self, ctx: StageContext) -> Metrics:
        """`index.html`, `report.md`, `results.json` and `figures/`; outcome -> verdicts with it."""
        results = Results(ctx.input_list("results", Artifact))
        found = self.find(results, ctx.workdir / "figures")
        beside = Path(inspect.getfile(type(self))).parent
        published = published_tables(beside) if self.ARXIV else []
        smoke = self.scale == "smoke"
        page = Page(
            self.TITLE,
            f"{found.subject}, scale {self.scale}. Every figure was measured by effllm"
            f"{', except under “Beside the paper”' if published else ''}.",
            question=self.QUESTION,
            answer=_SMOKE if smoke else found.answer,
            conditions=found.conditions,
            arxiv=self.ARXIV,
        )
        page.add(*found.main)
        if found.verdicts and not smoke:
            page.add(Heading("Verdicts"))
            page.add(*(Verdicts(*group) for group in found.verdicts.items() if group[1]))
            page.add(Text(_JUDGED.format(more=found.judged).rstrip()))
        made = make_table(
            [row.plain for row in found.rows],
            Column("Row", lambda row: row["title"]),
            Column("", lambda row: row["pattern"]),
            Column("seed", lambda row: _listed(row["seed"])),
            Column("effllm show", lambda row: _listed(row["artifact"])),
        )
        cost = [
            Text(found.provenance) if found.provenance else None,
            Text(told_cost(results)),
            made,
        ]
        ends: dict[str, Sequence[Block | None]]
        ends = {"Beside the paper": published, "Cost and provenance": cost}
        for title, blocks in {**found.sections, **ends}.items():
            if any(blocks):
                page.add(Heading(title), *blocks)
        page.write(ctx.workdir)
        write_json(
            ctx.workdir / "results.json",
            [row.plain | about(row, self.scale, results) for row in found.rows],
        )
        return page.outcomes


def about(row: ResultRow, scale: str, results: Results) -> dict[str, Any]:
    """What a row is of: scale, model and texts, so that rows of several reports can be compared."""
    labels = row.artifact if isinstance(row.artifact, list) else [row.artifact]
    made = [one for label in labels for one in results.lineage(label)]
    models = dict.fromkeys(
        str(one["sources"]["source"]["name"]) for one in made if one["stage"] == "import_model"
    )
    return {"scale": scale, "model": " + ".join(models), "texts": results.texts}


def told_cost(results: Sequence[Artifact]) -> str:
    """Time by stage, peak memory, disk, machine and code, from the manifests."""
    manifests = [artifact.manifest for artifact in results]
    by_stage: dict[str, float] = {}
    for made in manifests:
        by_stage[made["stage"]] = by_stage.get(made["stage"], 0.0) + made["timing"]["seconds"]
    longest = sorted(by_stage.items(), key=lambda item: -item[1])[:_SHOWN]
    shown = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in longest)
    peaks = [made["timing"]["peak_rss_bytes"] or 0 for made in manifests]
    stored = sum(entry["bytes"] for made in manifests for entry in made["outputs"].values())
    warned = sum(len(made["warnings"]) for made in manifests)
    environment = manifests[0]["env"]
    machines = dict.fromkeys(
        f"{made['env']['device']}, {made['env']['threads']} threads" for made in manifests
    )
    versions = ", ".join(f"{k} {v}" for k, v in environment["packages"].items() if v)
    days = sorted(made["timing"]["finished"][:10] for made in manifests)
    commits = dict.fromkeys(str(made["code"]["git_sha"])[:10] for made in manifests)
    commands = dict.fromkeys(made["command"] for made in manifests)
    return (
        f"{len(manifests)} results, {sum(by_stage.values()) / 60:.1f} minutes of stages (most: "
        f"{shown}), peak memory {max(peaks) / 2**30:.1f} GiB, {stored / 1e9:.1f} GB stored, "
        f"{warned} warnings. Measured on {'; '.join(machines)}. "
        f"Python {environment['python']}, {versions}. Made from {days[0]} to {days[-1]} by commit "
        f"{', '.join(commits)} ({'; '.join(commands)})."
    )


def _listed(value: object) -> str:
    """Of one or several; empty for None."""
    several = value if isinstance(value, list) else [] if value is None else [value]
    return ", ".join(str(one) for one in several)
