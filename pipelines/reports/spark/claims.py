"""What the paper claims of SparK, what we ask beside it, and what the figures say."""

from __future__ import annotations

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.page import Verdict
from effllm.pipelines.reports.spark.figures import undominated
from effllm.pipelines.reports.spark.names import arm_name, dense_arms
from effllm.pipelines.reports.spark.study import Study
from effllm.pipelines.reports.spark.tables import timed
from effllm.pipelines.reports.verdicts import decide, differing, judge
from effllm.pipelines.reports.words import show

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
    ours = {
        "keys": "around their mean" if about["keys"]["centred"] else "as they are",
        "last tokens dense": about["protect_last"],
        "group of queries": about["group_reduce"],
    }
    judged = ("judged on texts, paper on LongBench",) if on_text else ()
    return (*judged, *differing(ours, _PAPER_KEYS), *study.conditions)


def verdicts(study: Study, answers: Study) -> dict[str, list[Verdict]]:
    """One per claim; a claim about arms that did not run is left out.

    Args:
        study: texts and prompts of all arms.
        answers: more prompts, of some arms; decides on answers where it has both arms.
    """
    quality: list[Verdict] = []
    answered: list[Verdict] = []
    for arm, other, than, paper in (
        ("spark_50", "think_for_50", "ThinK", True),
        ("spark_80", "think_for_80", "ThinK", True),
        ("spark_80", "snapkv_for_80", "eviction", False),
    ):
        claim = f"SparK is better than {than} at equal bytes"
        quality += _better(study, arm, other, claim, paper=paper)
        claim = f"SparK answers more than {than} at equal bytes"
        answered += _better(answers, arm, other, claim, paper=paper, on_text=False)
    quality += _better(study, "spark_80", "int4", "SparK is better than 4-bit keys")
    claim = "SparK answers more than 4-bit keys"
    answered += _better(answers, "spark_80", "int4", claim, on_text=False)
    return {
        "Bytes": [verdict for arm in ("spark_50", "spark_80") for verdict in _smaller(study, arm)],
        "The loss": [
            *_under(study, answers, "spark_80", "dense", "the full cache"),
            *_under(study, answers, "snapkv_25_spark_80", "snapkv_25", "SnapKV alone"),
        ],
        "SparK against other caches, on texts": quality,
        "SparK against other caches, in answers": answered,
        "SparK together with other methods": [
            *_better(
                study,
                "snapkv_25_spark_80",
                "snapkv_18",
                "Orthogonal to eviction: SparK on top of SnapKV is better than evicting more",
                paper=True,
            ),
            *_better(
                study,
                "spark_80_int4",
                "int3",
                "Orthogonal to quantisation: SparK with 4-bit values is better than 3-bit keys",
                paper=True,
            ),
        ],
    }


def reading_verdicts(benched: Artifact) -> list[Verdict]:
    """One per arm that reads packed keys, after the longest prompt that was timed."""
    about = benched.read_json("arms.json")
    longest = max(row["length"] for row in benched.read_rows("predictions.jsonl"))
    times = timed(benched, longest)
    found = []
    for arm in about:
        if about[arm]["reading"] != "packed":
            continue
        ratios = {dense: times.over(arm, dense, "decode_seconds") for dense in dense_arms(about)}
        evidence = "; ".join(
            f"{show(ratio, '.2f')} of the time of {arm_name(about[dense])}"
            for dense, ratio in ratios.items()
        )
        claim = (
            f"A token after {longest:,} tokens takes at most {_SLOWER} of the dense cache's time "
            f"({arm_name(about[arm])}; a goal of ours)."
        )
        found.append(judge(claim, ratios["dense"], f"{evidence}.", below=_SLOWER))
    return found


def answer(study: Study, answers: Study) -> str:
    """Bytes and loss of SparK at a ratio of 0.8, and what as many bytes buy in 4-bit keys."""
    if not study.has("spark_80", "int4"):
        return ""
    lost = [f"{show(study.perplexity_change('spark_80', 'dense'), '+.1%')} % perplexity"]
    asked = _asked(study, answers, "spark_80", "dense", "int4")
    points, full = asked.score_change("spark_80", "dense"), asked.score("dense")
    if points is not None and full is not None:
        lost.append(f"{show(points, '+.1%')} points of {100 * full.value:.1f} % answers")
    against = [f"{show(study.texts.change('spark_80', 'int4', 'kl'), '+.4f')} nats of KL"]
    points = asked.score_change("spark_80", "int4")
    if points is not None:
        against.append(f"{show(points, '+.1%')} points of answers")
    return (
        f"At r = 0.8 the cache holds {100 * study.saving('spark_80'):.1f} % fewer bytes: "
        f"{' and '.join(lost)}. Against 4-bit keys, at {study.bytes_ratio('spark_80', 'int4'):.2f} "
        f"of their bytes, it has {' and '.join(against)}."
    )


def region(study: Study) -> str:
    """Which arms no other arm beats in both bytes and KL."""
    best = undominated(study)
    names = "; ".join(
        f"{study.title(arm)} ({study.bytes_per_token(arm):,.0f} bytes)" for arm in best
    )
    tail = (
        "SparK is among them where other arms leave room."
        if any(study.about[arm]["keys"]["class"] == "SparkKeys" for arm in best)
        else "SparK is not among them: at its bytes something else has less KL."
    )
    return (
        f"No other arm has both fewer bytes and less KL (means, without intervals) than: {names}. "
        f"{tail}"
    )


def _smaller(study: Study, arm: str) -> list[Verdict]:
    if not study.has(arm):
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


def _asked(study: Study, answers: Study, *arms: str) -> Study:
    """The evaluation with more prompts, if it has the arms and prompts that count."""
    return answers if answers.has(*arms) and answers.prompted else study


def _under(study: Study, answers: Study, arm: str, other: str, name: str) -> list[Verdict]:
    if not study.has(arm, other):
        return []
    claim = f"At r = 0.8 the loss against {name} is under {100 * _LOSS:.0f} %"
    change = study.perplexity_change(arm, other)
    evidence = f"Perplexity {show(change, '+.1%')} %."
    found = [judge(f"{claim} of perplexity (ours).", change, evidence, below=_LOSS)]
    asked = _asked(study, answers, arm, other)
    change_of_score, full = asked.score_change(arm, other), asked.score(other)
    if change_of_score is not None and full is not None:
        found.append(
            judge(
                f"{claim} of answers.",
                change_of_score,
                f"Answers {show(change_of_score, '+.1%')} points of "
                f"{100 * full.value:.1f} % ({asked.prompted} prompts).",
                above=-_LOSS * full.value,
                paper=True,
                conditions=conditions(asked, arm),
            )
        )
    return found


def _better(
    study: Study, arm: str, other: str, claim: str, *, paper: bool = False, on_text: bool = True
) -> list[Verdict]:
    """Whether an arm has less KL, or answers more; open if it was allowed more bytes."""
    score = study.score_change(arm, other) if study.has(arm, other) else None
    if not study.has(arm, other) or (score is None and not on_text):
        return []
    points, ratio = show(score, "+.1%"), study.bytes_ratio(arm, other)
    if score is None or on_text:
        less = study.texts.change(arm, other, "kl")
        evidence = f"KL {show(less, '+.4f')} nats at {ratio:.2f} of the bytes."
        evidence += f" Answers {points} points." if points else ""
    else:
        less = 0 - score
        evidence = f"{points} points of {study.prompted} prompts at {ratio:.2f} of the bytes."
    claim = f"{claim} ({study.title(arm)} against {study.title(other)})."
    if less.high < 0 and ratio > _EQUAL:
        return [decide(claim, evidence, holds=False, fails=False)]
    differs = conditions(study, arm, on_text=on_text)
    return [judge(claim, less, evidence, below=0, paper=paper, conditions=differs)]
