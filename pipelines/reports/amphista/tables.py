"""Tables and rows of the Amphista report."""

from __future__ import annotations

from effllm.modules.evaluation.intervals import INTERVALS
from effllm.pipelines.reports.amphista.scores import AMPHISTA, Study
from effllm.pipelines.reports.page import Table
from effllm.pipelines.reports.results import ResultRow, Results
from effllm.pipelines.reports.table import Column, columns, make_table


def tau_table(study: Study) -> Table:
    """The main table: tokens per pass at equal trees."""
    return make_table(
        study.arms,
        Column("Drafter", lambda arm: arm),
        Column("parameters, M", lambda arm: f"{study.parameters(arm) / 1e6:.3g}"),
        *columns({n: f"tau, {n} nodes" for n in study.nodes}, study.tau, ".3f", max),
        Column("seeds", lambda arm: str(len(study.seeds(arm)))),
        Column("training, s", study.training_seconds, ".0f"),
        note="Tokens per pass of the target (tau), its own token included, if every position of "
        f"{study.texts} test texts were visited; each drafter with its best tree of so many nodes, "
        f"chosen on held-out texts. Means over training seeds. {INTERVALS}, over texts; some texts "
        "are about passages of the same article. Same states, same updates, same loss for all; the "
        "learning rate of each is the better of two on held-out texts, in short trials.",
    )


def gain_table(study: Study) -> Table | None:
    """Amphista beside every other arm; None without it."""
    if AMPHISTA not in study.arms:
        return None
    return make_table(
        [arm for arm in study.arms if arm != AMPHISTA],
        Column(f"{AMPHISTA}, more tokens per pass", lambda arm: f"over {arm}"),
        *columns(
            {n: f"{n} nodes" for n in study.nodes},
            lambda arm, n: study.gain(AMPHISTA, arm, n),
            "+.3f",
        ),
        Column("seeds", lambda arm: str(len(study.seeds(AMPHISTA, arm)))),
        note="Paired by text and training seed. With several seeds the ends are the outer ones of "
        "the interval over texts and Student's t over seeds.",
    )


def accuracy_table(study: Study) -> Table:
    """How often each head is right."""
    heads = range(1, study.heads + 1)
    return make_table(
        study.arms,
        Column("Right on test texts, %", lambda arm: arm),
        *columns({head: f"head {head}" for head in heads}, study.right, ".1%", max),
        *columns(
            {head: f"head {head}, among 5" for head in heads},
            lambda arm, head: study.right(arm, head, among=5),
            ".1%",
            max,
        ),
        *columns(
            {head: f"head {head}, if all before" for head in heads},
            lambda arm, head: study.metric(arm, f"test/conditional/{head}"),
            ".1%",
            max,
        ),
        note="Head k guesses the k-th token after the one that the target has just chosen. "
        f"{100 * study.metric(next(iter(study.arms)), 'test/inside_vocabulary'):.1f} % of the "
        "tokens are among those that heads can guess; the others count as wrong.",
    )


def result_rows(study: Study) -> list[ResultRow]:
    """Rows of `results.json`, an arm each; several seeds are their mean."""
    found = []
    for arm, mine in study.arms.items():
        measures = {f"tau/{count}": study.tau(arm, count) for count in study.nodes}
        measures |= {f"top1/{head}": study.right(arm, head) for head in range(1, study.heads + 1)}
        found.append(
            ResultRow(
                paper="amphista",
                method=arm,
                title=arm,
                pattern="",
                seed=[drafter.seed for drafter in mine],
                artifact=[drafter.scores.label for drafter in mine],
                figures={"parameters": study.parameters(arm), **measures},
                n=dict.fromkeys(measures, study.texts),
            )
        )
    return found


def texts(results: Results) -> str:
    """What heads learnt from and were judged on."""
    said = []
    for states in results.by("cache_hidden_states"):
        found = states.manifest["metrics"]
        said.append(
            f"{found['texts']} texts with {found['answer_tokens']:,} tokens of answers "
            f"({found['tokens']:,} with prompts; {100 * found['looping_texts']:.0f} % of the "
            "texts were cut where they began to loop)"
        )
    names = ("Learnt from", "trees chosen on", "figures counted on")
    return "; ".join(f"{name} {text}" for name, text in zip(names, said, strict=False)) + "."
