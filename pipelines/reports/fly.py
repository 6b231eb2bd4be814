"""What the FLy report says: verdicts, the gate, and loosened tokens in context."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts import Artifact
from effllm.pipelines.reports.decoding import Bench, interval
from effllm.pipelines.reports.page import Table, Verdict

_SHOWN = 30  # loosened tokens in the table


def verdicts(bench: Bench) -> list[Verdict]:
    """One per claim, from paired differences."""
    found = []
    for arm in bench.arms:
        if arm == "plain" or "rounds" not in bench.arms[arm][0] or not bench.lossless[arm]:
            continue
        ratio = bench.speed_ratio(arm, "plain")
        found.append(_above_one(f"Exact decoding with {_name(arm)} beats plain decoding.", ratio))
    for arm in (one for one in bench.arms if one.endswith("_fly")):
        exact = arm.removesuffix("_fly")
        if exact not in bench.arms:
            continue
        ratio = bench.speed_ratio(arm, exact)
        claim = f"FLy decodes faster than exact verification of the same drafts ({_name(exact)})."
        found.append(_above_one(claim, ratio))
        change = bench.nll_change(arm)
        kept = "inconclusive"
        if change.high < 0.05:
            kept = "supported"
        elif change.low > 0.05:
            kept = "not supported"
        found.append(
            Verdict(
                f"FLy keeps the target's quality ({_name(exact)}): its text is at most 0.05 nats "
                "per token less likely under the target than the target's own (bound ours).",
                kept,
                f"Change of target NLL {interval(change, 3, sign=True)}.",
            )
        )
    return found


def _above_one(claim: str, ratio: Interval) -> Verdict:
    outcome = "inconclusive"
    if ratio.low > 1:
        outcome = "reproduced"
    elif ratio.high < 1:
        outcome = "not reproduced"
    return Verdict(claim, outcome, f"Speed ratio {interval(ratio, 2)}.")


def gate_table(bench: Bench) -> Table:
    """How often the gate is open at mismatches, and the quantiles of its measure."""
    rows: list[list[str]] = []
    for arm, mine in bench.arms.items():
        events = [event for row in mine for event in row.get("events", [])]
        gates = np.array([one["gate"] for one in events if one["gate"] is not None])
        if not len(gates):
            continue
        quantiles = np.quantile(gates, [0.1, 0.25, 0.5, 0.75, 0.9])
        loosened = 100 * np.mean([one["loosened"] for one in events])
        rows.append(
            [_name(arm), str(len(gates)), f"{100 * np.mean(gates >= 0.3):.0f}", f"{loosened:.0f}"]
            + [f"{one:.2f}" for one in quantiles]
        )
    columns = ["Arm", "mismatches", "at least 0.3 nats, %", "kept, %"]
    return Table(
        columns + [f"{share} % quantile" for share in (10, 25, 50, 75, 90)],
        rows,
        note="The measure at mismatches that were judged: entropy of the three most likely tokens "
        "of the target, nats.",
    )


def loosened_table(bench: Bench, tokenizer: PreTrainedTokenizerBase) -> Table:
    """Kept mismatches of the first FLy arm with what stands around them."""
    arm = next((one for one in bench.arms if one.endswith("_fly")), None)
    rows: list[list[str]] = []
    for row in bench.arms[arm] if arm else []:
        for event in row["events"]:
            if not event["loosened"] or len(rows) >= _SHOWN:
                continue
            place = event["prefix"] - row["prompt_tokens"] + event["position"]
            before = _decoded(tokenizer, row["output"][max(0, place - 12) : place])
            after = _decoded(tokenizer, row["output"][place + 1 : place + 9])
            rows.append(
                [
                    f"…{before} ⟦{_decoded(tokenizer, [event['drafted']])}⟧{after}…",
                    _decoded(tokenizer, [event["chosen"]]),
                    f"{event['drafted_probability']:.3f}",
                    f"{event['chosen_probability']:.3f}",
                    f"{event['gate']:.2f}",
                ]
            )
    return Table(
        ["Kept token ⟦in context⟧", "target's choice", "p(kept)", "p(choice)", "gate, nats"],
        rows,
        note=f"The first {len(rows)} of arm {_name(arm)}." if arm and rows else "None was kept.",
    )


def paper_table() -> Table:
    """The paper's figures, labelled as such."""
    return Table(
        ["The paper's figures (not comparable)", "Setting", "Speed-up", "tau", "Source"],
        [
            ["Llama-3.1-70B, FLy", "mean, T=0, out of domain", "2.74", "12.41", "second-hand"],
            ["Llama-3.1-70B, SpS (exact)", "same", "2.04", "10.91", "second-hand"],
            ["Llama-3.1-405B, FLy", "same", "4.80", "17.13", "second-hand"],
            ["Llama-3.1-70B, FLy, W=0", "HumanEval", "3.42", "15.59", "second-hand"],
            ["Llama-3.1-70B, FLy, theta=0", "HumanEval", "2.98", "12.76", "second-hand"],
        ],
        note="arXiv 2511.22972; draft Llama-3.1-8B, AMD Instinct MI355X, speeds over the library's "
        "generate. Another model, drafter and machine than ours: read directions, not values.",
    )


def result_rows(bench: Bench, label: str, benched: Artifact) -> list[dict[str, Any]]:
    """Rows of `results.json`: `{paper, method, pattern, seed, metrics, intervals, n, artifact}`."""
    found = []
    for arm, mine in bench.arms.items():
        measures: dict[str, Interval | None] = {
            "tokens_per_second": bench.speed(arm),
            "speed_over_plain": bench.speed_ratio(arm, "plain"),
            "acceptance_length": bench.acceptance_length(arm),
            "target_nll_over_plain": bench.nll_change(arm),
        }
        known = {key: one for key, one in measures.items() if one is not None}
        found.append(
            {
                "paper": "fly",
                "method": arm,
                "pattern": "",
                "seed": benched.manifest["seed"],
                "lossless": bench.lossless[arm],
                "metrics": {key: one.value for key, one in known.items()},
                "intervals": {key: [one.low, one.high] for key, one in known.items()},
                "n": dict.fromkeys(known, len(mine)),
                "artifact": label,
            }
        )
    return found


def _decoded(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens))


def _name(arm: str | None) -> str:
    return (arm or "").replace("_", " ")
