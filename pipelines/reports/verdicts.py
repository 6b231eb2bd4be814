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
from effllm.pipelines.reports.page import Verdict
from effllm.pipelines.reports.results import Results


def judge(
    claim: str,
    figure: Interval,
    evidence: str,
    *,
    below: float | None = None,
    above: float | None = None,
    margin: float = 0.0,
    paper: bool = False,
    conditions: Sequence[str] = (),
) -> Verdict:
    """Judge a claim that a figure lies on one side of a bound.

    Args:
        claim: what is claimed.
        figure: the estimate.
        evidence: the numbers in words.
        below: the bound that it is claimed to be below of; this or `above` is given.
        above: the bound that it is claimed to be above of.
        margin: how far from the bound the interval must stay; covers what it does not see.
        paper: whether the paper claims it; our own goals and controls are supported or not.
        conditions: what differs from the paper's conditions; for claims of the paper.
    """
    if not figure.known:
        return Verdict(
            claim, "no verdict", f"{evidence} Fewer than {TOO_FEW} examples have no interval."
        )
    excess = figure - below if below is not None else (above or 0.0) - figure
    return decide(
        claim,
        evidence,
        holds=excess.high < -margin,
        fails=excess.low > margin,
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


def model_and_texts(results: Results) -> dict[str, str]:
    """What a run was about, to be set beside the paper's `model`, `calibration`, `test text`."""
    found = {"model": short_name(results.model)}
    for windows in results.by("make_windows"):
        config, metrics = windows.manifest["config"], windows.manifest["metrics"]
        text = short_name(str(metrics["protocol"]).partition(f"-{config['split']}-")[0])
        if config["split"] == "calibration":
            found["calibration"] = f"{text}, {metrics['windows']} x {config['sequence_length']}"
        elif config["split"] == "test":
            found["test text"] = f"{text}, windows of {config['sequence_length']}"
    return found


def short_name(name: str) -> str:
    """The name of a model or text without its owner."""
    return name.rpartition("/")[2]
