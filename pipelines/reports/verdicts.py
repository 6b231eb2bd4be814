"""One rule for the verdicts of all papers.

A claim holds if the whole interval lies on its side, by more than a margin where one calibration
seed decides; it fails if the whole interval lies on the other side. Figures are those of test text
or test prompts. A claim of ours is `supported` or `not supported`. A claim of the paper is
`reproduced` or `not reproduced` only under the paper's conditions; else it is `supported under
other conditions` (or not), and these stand beside it. Fewer than five examples give `no verdict`,
smoke runs give none at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from effllm.modules.evaluation.intervals import TOO_FEW, Interval
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.page import Text, Verdict


def judge(
    claim: str,
    change: Interval,
    evidence: str,
    *,
    margin: float = 0.0,
    paper: bool = False,
    conditions: Sequence[str] = (),
) -> Verdict:
    """Judge a claim that a figure is negative.

    Args:
        claim: what is claimed.
        change: the figure; negative is the claimed side.
        evidence: the numbers in words.
        margin: how far from zero the interval must stay; covers what the interval does not see.
        paper: whether the paper claims it; our own goals and controls are supported or not.
        conditions: what differs from the paper's conditions; for claims of the paper.
    """
    if not change.known:
        return Verdict(
            claim, "no verdict", f"{evidence} Fewer than {TOO_FEW} examples have no interval."
        )
    return decide(
        claim,
        evidence,
        holds=change.high < -margin,
        fails=change.low > margin,
        paper=paper,
        conditions=conditions,
    )


def decide(
    claim: str,
    evidence: str,
    *,
    holds: bool,
    fails: bool,
    paper: bool = False,
    conditions: Sequence[str] = (),
) -> Verdict:
    """Word a claim that is known to hold, to fail, or neither; see `judge`."""
    if not (holds or fails):
        return Verdict(claim, "inconclusive", evidence)
    outcome = "" if holds else "not "
    if not paper:
        return Verdict(claim, f"{outcome}supported", evidence)
    if not conditions:
        return Verdict(claim, f"{outcome}reproduced", evidence)
    return Verdict(claim, f"{outcome}supported under other conditions", evidence, tuple(conditions))


def differing(ours: Mapping[str, Any], paper: Mapping[str, Any]) -> tuple[str, ...]:
    """Conditions that are not the paper's, such as `W = 3, paper 6`.

    Args:
        ours: name -> what a run had.
        paper: name -> what the paper had; a tuple if it had several.
    """
    found = []
    for name, theirs in paper.items():
        several = theirs if isinstance(theirs, tuple) else (theirs,)
        mine = ours.get(name, "none")
        if mine not in several:
            shown = " or ".join(str(value) for value in several)
            found.append(f"{name} = {mine}, paper {shown}")
    return tuple(found)


def model_and_texts(results: Sequence[Artifact]) -> dict[str, str]:
    """What a run was about, to be set beside the paper's `model`, `calibration`, `test text`."""
    name = next(
        one.manifest["sources"]["source"]["name"]
        for one in results
        if one.manifest["stage"] == "import_model"
    )
    found = {"model": short_name(name)}
    for one in results:
        if one.manifest["stage"] != "make_windows":
            continue
        config, metrics = one.manifest["config"], one.manifest["metrics"]
        text = short_name(str(metrics["protocol"]).partition(f"-{config['split']}-")[0])
        if config["split"] == "calibration":
            found["calibration"] = f"{text}, {metrics['windows']} x {config['sequence_length']}"
        elif config["split"] == "test":
            found["test text"] = f"{text}, windows of {config['sequence_length']}"
    return found


def short_name(name: str) -> str:
    """The name of a model or text without its owner."""
    return name.rpartition("/")[2]


def shown_at(scale: str, verdicts: Sequence[Verdict]) -> Sequence[Verdict | Text]:
    """The verdicts; at smoke scale only the word that there are none."""
    return [Text("No verdicts at smoke scale.")] if scale == "smoke" else verdicts
