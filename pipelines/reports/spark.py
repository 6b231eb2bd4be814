"""What the SparK report says: verdicts, pairs at equal bytes, pictures, the paper's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.caches import Study, arm_name, dense_arms, time_ratio
from effllm.pipelines.reports.decoding import interval
from effllm.pipelines.reports.figures import COLOURS, figure, write_csv
from effllm.pipelines.reports.page import Figure, Table, Verdict
from effllm.pipelines.reports.verdicts import decide, differing, judge

_SAVING = 0.30  # the abstract: KV storage down by over 30 %
_EQUAL = 1.02  # bytes over another arm's that still count as equal; ours
_SLOWER = 1.3  # ours
_LOSS = 0.05  # the abstract: under 5 % degradation at r = 0.8
_PAPER_RUN = {
    "model": ("Meta-Llama-3-8B-Instruct", "Llama-3.1-8B-Instruct"),
    "prompts": "longbench",
    "question": "inside the compressed prompt",
}
_PAPER_KEYS = {"keys": "as they are", "last tokens dense": 0, "group of queries": "mean_signed"}

# First and second hold about the same bytes; the table prints how nearly.
PAIRS = (
    ("spark_50", "think_for_50"),
    ("spark_80", "think_for_80"),
    ("spark_80", "snapkv_for_80"),
    ("spark_50", "snapkv_for_50"),
    ("spark_80", "streaming_for_80"),
    ("spark_50", "int8"),
    ("spark_80", "int4"),
    ("spark_80_int4", "int3"),
    ("spark_60_int4", "int4"),
    ("snapkv_25_spark_80", "snapkv_18"),
    ("snapkv_25_spark_80", "snapkv_25_think_for_80"),
    ("snapkv_25_spark_80", "snapkv_25_int4"),
    ("spark_80_int4_both", "int4_both"),
)


def run_conditions(model: str, prompts: str, *, inside: bool) -> tuple[str, ...]:
    """What an evaluation had that the paper's did not."""
    question = "inside the compressed prompt" if inside else "after it"
    return differing({"model": model, "prompts": prompts, "question": question}, _PAPER_RUN)


def conditions(study: Study, arm: str, *, on_text: bool = False) -> tuple[str, ...]:
    """What differs from the paper's conditions when an arm is judged.

    Args:
        study: its evaluation.
        arm: of SparK.
        on_text: whether the claim is judged by texts; the paper has scores only.
    """
    about = study.about[arm]
    keys = about["keys"]
    ours = {
        "keys": "around their mean" if keys["centred"] else "as they are",
        "last tokens dense": about["protect_last"],
        "group of queries": about["group_reduce"],
    }
    judged = ("judged on texts, paper on LongBench",) if on_text else ()
    return (*judged, *differing(ours, _PAPER_KEYS), *study.conditions)


def verdicts(study: Study, answers: Study) -> list[Verdict]:
    """One per claim; a claim about arms that did not run is left out.

    Args:
        study: texts and prompts of all arms.
        answers: more prompts, of some arms; decides on answers where it has both arms.
    """
    found = []
    for arm in ("spark_50", "spark_80"):
        found += _smaller(study, arm)
    found += _under(study, answers, "spark_80", "dense", "the full cache")
    found += _under(study, answers, "snapkv_25_spark_80", "snapkv_25", "SnapKV alone")
    for arm, other in (("spark_50", "think_for_50"), ("spark_80", "think_for_80")):
        found += _better(study, arm, other, "SparK is better than ThinK at equal bytes", paper=True)
        claim = "SparK answers more than ThinK at equal bytes"
        found += _answers(answers, arm, other, claim, paper=True)
    found += _better(
        study, "spark_80", "snapkv_for_80", "SparK is better than eviction at equal bytes"
    )
    found += _answers(
        answers, "spark_80", "snapkv_for_80", "SparK answers more than eviction at equal bytes"
    )
    found += _better(
        study,
        "snapkv_25_spark_80",
        "snapkv_18",
        "Orthogonal to eviction: SparK on top of SnapKV is better than evicting more",
        paper=True,
    )
    found += _better(study, "spark_80", "int4", "SparK is better than 4-bit keys")
    found += _answers(answers, "spark_80", "int4", "SparK answers more than 4-bit keys")
    found += _better(
        study,
        "spark_80_int4",
        "int3",
        "Orthogonal to quantisation: SparK with 4-bit values is better than 3-bit keys",
        paper=True,
    )
    return found


def reading_verdicts(benched: Artifact) -> list[Verdict]:
    """One per arm that reads packed keys, behind the longest prompt that was timed."""
    about, rows = benched.read_json("arms.json"), benched.read_rows("predictions.jsonl")
    longest = max(row["length"] for row in rows)
    found = []
    for arm in about:
        if about[arm]["reading"] != "packed":
            continue
        ratios = {one: time_ratio(rows, arm, one, longest) for one in dense_arms(about)}
        evidence = "; ".join(
            f"{interval(ratio, 2)} of the time of {arm_name(about[one])}"
            for one, ratio in ratios.items()
        )
        claim = (
            f"A token behind {longest:,} tokens takes at most {_SLOWER} of the dense cache's time "
            f"({arm_name(about[arm])}; a goal of ours)."
        )
        found.append(judge(claim, ratios["dense"] - _SLOWER, f"{evidence}."))
    return found


def _smaller(study: Study, arm: str) -> list[Verdict]:
    if arm not in study.about:
        return []
    saving = study.saving(arm)
    return [
        decide(
            f"The cache is over {100 * _SAVING:.0f} % smaller ({study.title(arm)}).",
            f"{100 * saving:.1f} % fewer bytes held than 16-bit states take, masks, signs and "
            "gains counted.",
            holds=saving > _SAVING,
            fails=saving <= _SAVING,
            paper=True,
            conditions=conditions(study, arm),
        )
    ]


def _under(study: Study, answers: Study, arm: str, other: str, name: str) -> list[Verdict]:
    if not {arm, other} <= study.about.keys():
        return []
    claim = f"At r = 0.8 the loss against {name} is under {100 * _LOSS:.0f} %"
    change = study.perplexity_change(arm, other)
    evidence = f"Perplexity {interval(change, 1, sign=True, scale=100)} %."
    found = [judge(f"{claim} of perplexity (ours).", change - _LOSS, evidence)]
    asked = answers if {arm, other} <= answers.about.keys() and answers.prompted else study
    if asked.prompted:
        score, full = asked.change(arm, other, "score"), asked.mean(other, "score").value
        evidence = (
            f"Answers {interval(score, 1, sign=True, scale=100)} points of {100 * full:.1f} % "
            f"({asked.prompted} prompts)."
        )
        found.append(
            judge(
                f"{claim} of answers.",
                (0 - score) - _LOSS * full,
                evidence,
                paper=True,
                conditions=conditions(asked, arm),
            )
        )
    return found


def _less(
    claim: str,
    change: Interval,
    evidence: str,
    ratio: float,
    *,
    paper: bool,
    conditions: tuple[str, ...],
) -> Verdict:
    """Whether an arm is below another; never so if it was allowed `ratio` times the bytes."""
    verdict = judge(claim, change, evidence, paper=paper, conditions=conditions)
    if change.high < 0 and ratio > _EQUAL:
        return decide(claim, evidence, holds=False, fails=False)
    return verdict


def _better(
    study: Study, arm: str, other: str, claim: str, *, paper: bool = False
) -> list[Verdict]:
    if not {arm, other} <= study.about.keys():
        return []
    change = study.change(arm, other, "kl")
    ratio = study.bytes_per_token(arm) / study.bytes_per_token(other)
    evidence = f"KL {interval(change, 4, sign=True)} nats at {ratio:.2f} of the bytes."
    if study.prompted:
        score = study.change(arm, other, "score")
        evidence += f" Answers {interval(score, 1, sign=True, scale=100)} points."
    return [
        _less(
            f"{claim} ({study.title(arm)} against {study.title(other)}).",
            change,
            evidence,
            ratio,
            paper=paper,
            conditions=conditions(study, arm, on_text=True),
        )
    ]


def _answers(
    study: Study, arm: str, other: str, claim: str, *, paper: bool = False
) -> list[Verdict]:
    if not {arm, other} <= study.about.keys() or not study.prompted:
        return []
    more = study.change(arm, other, "score")
    ratio = study.bytes_per_token(arm) / study.bytes_per_token(other)
    evidence = (
        f"{interval(more, 1, sign=True, scale=100)} points of {study.prompted} prompts at "
        f"{ratio:.2f} of the bytes."
    )
    return [
        _less(
            f"{claim} ({study.title(arm)} against {study.title(other)}).",
            0 - more,
            evidence,
            ratio,
            paper=paper,
            conditions=conditions(study, arm),
        )
    ]


def region(study: Study, arms: list[str]) -> str:
    """Which arms no other arm beats in both bytes and KL."""
    points = {arm: (study.bytes_per_token(arm), study.mean(arm, "kl").value) for arm in arms}

    def beaten(arm: str) -> bool:
        size, kl = points[arm]
        return any(
            other != arm and a <= size and b <= kl and (a, b) != (size, kl)
            for other, (a, b) in points.items()
        )

    best = sorted((arm for arm in arms if not beaten(arm)), key=lambda arm: points[arm][0])
    names = [f"{study.title(arm)} ({points[arm][0]:,.0f} bytes)" for arm in best]
    spark = [one for one in best if study.about[one]["keys"]["class"] == "SparkKeys"]
    tail = (
        "SparK is among them where other arms leave room."
        if spark
        else "SparK is not among them: at its bytes something else has less KL."
    )
    return (
        "No other arm has both fewer bytes and less KL (means, without intervals) than: "
        f"{'; '.join(names)}. {tail}"
    )


def draw_tradeoff(study: Study, arms: list[str], folder: Path) -> Figure:
    """KL against bytes."""
    kinds = {
        "SparkKeys": ("SparK", "o"),
        "ThinkKeys": ("ThinK", "s"),
        "ChannelIntegers": ("rounded keys", "^"),
        "TokenIntegers": ("rounded keys", "^"),
        "Dense": ("eviction alone", "D"),
    }
    table: list[dict[str, Any]] = []
    seen: set[str] = set()
    with figure(folder, "tradeoff", size=(8.5, 5.2)) as axes:
        for arm in arms:
            if arm == "dense":
                continue
            about = study.about[arm]
            name, marker = kinds[about["keys"]["class"]]
            if about["evict"] is not None and name != "eviction alone":
                name += " on SnapKV"
            size, kl = study.bytes_per_token(arm), study.mean(arm, "kl")
            names = ["SparK", "ThinK", "rounded keys", "eviction alone"]
            colour = COLOURS[names.index(name.removesuffix(" on SnapKV"))]
            filled = "white" if about["evict"] is not None else colour
            low, high = max(kl.low, 1e-7), max(kl.high, 1e-7)
            axes.plot([size, size], [low, high], color=colour, linewidth=1.2)
            axes.plot(
                size, max(kl.value, 1e-7), marker, color=colour, markerfacecolor=filled,
                markersize=7, label="" if name in seen else name,
            )  # fmt: skip
            seen.add(name)
            table.append(
                {"arm": arm, "bytes": size, "kl": kl.value, "low": kl.low, "high": kl.high}
            )
        axes.set_yscale("log")
        axes.set_xlabel("bytes per token of the context, all layers")
        axes.set_ylabel("KL to the full cache, nats per token")
        axes.legend(fontsize=9)
    write_csv(folder, "tradeoff", table)
    return Figure(
        "tradeoff", "Bytes held and what they cost; lower left is better. 95 % intervals."
    )


def draw_kept(evaluated: Artifact, folder: Path) -> Figure | None:
    """Which channels each token keeps, in the middle layer's first head."""
    from safetensors.numpy import load_file

    file = evaluated.path / "kept.safetensors"
    if not file.is_file():
        return None
    kept = load_file(file)["kept"]
    with figure(folder, "kept", size=(9, 3.2)) as axes:
        axes.imshow(kept.T, aspect="auto", cmap="Blues", interpolation="nearest")
        axes.set_xlabel("token")
        axes.set_ylabel("channel")
        axes.grid(visible=False)
    shares = kept.mean(axis=0)
    write_csv(
        folder, "kept", [{"channel": n, "share": float(share)} for n, share in enumerate(shares)]
    )
    return Figure(
        "kept",
        "Kept channels (dark) of every packed token of the first window: middle layer, first head.",
    )


def paper_table() -> Table:
    """The paper's figures, labelled as such."""
    rows = [
        ["Full cache", "44.27", ""],
        ["SnapKV", "32.38", ""],
        ["SnapKV + ThinK (0.5)", "28.20", "-12.9"],
        ["SnapKV + ThinK (0.8)", "16.97", "-47.6"],
        ["SnapKV + SparK (0.5)", "32.04", "-1.1"],
        ["SnapKV + SparK (0.8)", "31.16", "-3.8"],
    ]
    return Table(
        ["The paper's figures (not comparable)", "LongBench, mean of 16", "% against SnapKV"],
        rows,
        note="arXiv 2508.15212, Table 1, second-hand; LLaMA-3-8B-Instruct (3.1 elsewhere), "
        "128 tokens per layer, question inside the compressed prompt. Another model, task set and "
        "budget than ours: read directions, not values. Its storage figures are r/2 and count no "
        "masks, signs or gains; its released code stores dense keys.",
    )


def result_rows(study: Study, evaluated: Artifact) -> list[dict[str, Any]]:
    """Rows of `results.json`: `{paper, method, pattern, seed, metrics, intervals, n, artifact}`."""
    found = []
    for arm in study.about:
        measures = {key: study.mean(arm, key) for key in ("kl", "agree", "nll")}
        measures["perplexity_change"] = study.perplexity_change(arm, "dense")
        if study.prompted:
            measures["score"] = study.mean(arm, "score")
        size = study.bytes_per_token(arm)
        examples = dict.fromkeys(measures, len(study.texts[arm]))
        if study.prompted:
            examples["score"] = study.prompted
        found.append(
            {
                "paper": "spark",
                "method": arm,
                "title": study.title(arm),
                "pattern": "",
                "seed": evaluated.manifest["seed"],
                "metrics": {
                    "bytes_per_token": size,
                    "saving": study.saving(arm),
                    **{key: one.value for key, one in measures.items()},
                },
                "intervals": {key: one.ends for key, one in measures.items()},
                "n": examples,
                "artifact": evaluated.label,
            }
        )
    return found
