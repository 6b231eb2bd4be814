"""Tables of the Amphista report."""

from __future__ import annotations

import csv
from pathlib import Path

from effllm.modules.evaluation.intervals import INTERVALS
from effllm.pipelines.reports.amphista.scores import AMPHISTA, Study
from effllm.pipelines.reports.decoding import interval
from effllm.pipelines.reports.page import Table


def tau_table(study: Study) -> Table:
    """The main table: tokens per pass at equal trees."""
    rows = [
        [
            arm,
            f"{study.parameters(arm) / 1e6:.3g}",
            *(interval(study.tau(arm, count), 3) for count in study.nodes),
            str(len(study.seeds(arm))),
            f"{study.training_seconds(arm):.0f}",
        ]
        for arm in study.arms
    ]
    return Table(
        [
            "Drafter",
            "parameters, M",
            *(f"tau, {count} nodes" for count in study.nodes),
            "seeds",
            "training, s",
        ],
        rows,
        note="Tokens per pass of the target (tau), its own token included, if every position of "
        f"{study.texts} test texts were visited; each drafter with its best tree of so many nodes, "
        f"chosen on held-out texts. Means over training seeds. {INTERVALS}, over texts; some texts "
        "are about passages of the same article. Same states, same updates, same loss for all; the "
        "learning rate of each is the better of two on held-out texts, in short trials.",
        strong=frozenset(place for place, arm in enumerate(study.arms) if arm == AMPHISTA),
    )


def gain_table(study: Study) -> Table:
    """Amphista beside every other arm."""
    rows = [
        [
            f"over {arm}",
            *(interval(study.gain(AMPHISTA, arm, count), 3, sign=True) for count in study.nodes),
            str(len(study.seeds(AMPHISTA, arm))),
        ]
        for arm in study.arms
        if arm != AMPHISTA
    ]
    return Table(
        [f"{AMPHISTA}, more tokens per pass", *(f"{n} nodes" for n in study.nodes), "seeds"],
        rows,
        note="Paired by text and training seed. With several seeds the ends are the outer ones of "
        "the interval over texts and Student's t over seeds.",
    )


def accuracy_table(study: Study) -> Table:
    """How often each head is right."""
    count = int(study.drafters[0].heads.about["settings"]["heads"])
    heads = range(1, count + 1)
    rows = [
        [
            arm,
            *(interval(study.right(arm, head), 1, scale=100) for head in heads),
            *(interval(study.right(arm, head, among=5), 1, scale=100) for head in heads),
            *(f"{100 * study.metric(arm, f'test/conditional/{head}'):.1f}" for head in heads),
        ]
        for arm in study.arms
    ]
    return Table(
        [
            "Right on test texts, %",
            *(f"head {head}" for head in heads),
            *(f"head {head}, among 5" for head in heads),
            *(f"head {head}, if all before" for head in heads),
        ],
        rows,
        note="Head k guesses the k-th token after the one that the target has just chosen. "
        f"{100 * study.metric(next(iter(study.arms)), 'test/inside_vocabulary'):.1f} % of the "
        "tokens are among those that heads can guess; the others count as wrong.",
    )


def paper_table() -> Table:
    """Published figures, labelled as such."""
    with (Path(__file__).parent / "paper.csv").open(newline="", encoding="utf-8") as file:
        columns, *rows = list(csv.reader(file))
    return Table(
        ["Published figures (not comparable)", *columns[1:]],
        rows,
        note="arXiv 2406.13170: only the abstract's figures were available to us; the others are "
        "of the Spec-Bench leaderboard (hemingkx/Spec-Bench) and of Medusa's code. Other models, "
        "texts and machines than ours: read directions, not values.",
    )
