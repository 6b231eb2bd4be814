"""Compressed caches in reports: names of arms, intervals paired by example, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from effllm.modules.evaluation.intervals import Interval, estimate
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.decoding import interval
from effllm.pipelines.reports.page import Table

Rows = list[dict[str, Any]]
About = dict[str, Any]

_READINGS = {"packed": "read packed", "sdpa": "rebuilt"}
_FLOOR = 0.2  # score of the full cache below which a task says nothing; RULER-like tasks, ours
_USUAL = {
    "saliency": "code",
    "recovery": "code",
    "signed": True,
    "centred": True,
    "block": 1,
    "window": 32,
    "group_reduce": "rms",
    "protect_first": 0,
    "protect_last": 32,
}


def arm_title(about: About) -> str:
    """What an arm is, in words; only what differs from the defaults is said."""
    parts = [
        part for part in (_evict(about["evict"]), _keys(about), _values(about["values"])) if part
    ]
    return " + ".join(parts) or "Full cache"


def _differences(about: About) -> list[str]:
    given = {**about["keys"], **about}
    found = []
    for name, usual in _USUAL.items():
        value = given[name]
        if value == usual:
            continue
        found.append(
            {
                "saliency": f"saliency {value}",
                "recovery": f"recovery {value}",
                "signed": "no signs",
                "centred": "not centred",
                "block": f"{value} tokens share channels",
                "window": f"window {value}",
                "group_reduce": "signed mean of queries",
                "protect_first": f"first {value} dense",
                "protect_last": f"last {value} dense" if value else "no dense tail",
            }[name]
        )
    return found


def _keys(about: About) -> str:
    match about["keys"]:
        case {"class": "SparkKeys", "ratio": ratio, "bits": bits}:
            inside = [f"r={ratio:g}", *([f"int{bits}"] if bits else []), *_differences(about)]
            return f"SparK ({', '.join(inside)})"
        case {"class": "ThinkKeys", "share": share}:
            return f"ThinK ({100 * share:.0f} % of channels)"
        case {"class": "ChannelIntegers", "bits": bits, "group": group}:
            return f"int{bits} keys (channel, {group})"
        case {"class": "TokenIntegers", "bits": bits}:
            return f"int{bits} keys (token)"
    return ""


def _values(about: About) -> str:
    match about:
        case {"class": "PrunedValues", "ratio": ratio}:
            return f"values pruned {ratio:g}"
        case {"class": "TokenIntegers", "bits": bits}:
            return f"int{bits} values"
    return ""


def _evict(about: About | None) -> str:
    if about is None:
        return ""
    budget = about["budget"]
    kept = f"{budget['tokens']} tokens"
    if budget["share"] is not None:
        kept = f"{100 * budget['share']:.1f}".removesuffix(".0") + " %"
    name = about["class"]
    if name == "SnapKV" and about["beta"] > 1:
        name = "PyramidKV"
    return f"{ {'Tova': 'TOVA', 'KeyNorm': 'Key norm'}.get(name, name) } {kept}"


@dataclass(frozen=True)
class Study:
    """Rows of one evaluation, arm by arm, in the order of the examples.

    Attributes:
        texts: arm -> rows of windows of text.
        prompts: arm -> rows of long prompts that the full cache can do.
        dropped: task and length -> score of the full cache, for those that it cannot.
        about: arm -> what it is.
        settings: of the evaluation.
        resamples: of the bootstrap.
        conditions: of the run that differ from the paper's.
    """

    texts: dict[str, Rows]
    prompts: dict[str, Rows]
    dropped: dict[tuple[str, int], float]
    about: dict[str, About]
    settings: dict[str, Any]
    resamples: int
    conditions: tuple[str, ...] = ()

    @classmethod
    def of(cls, evaluated: Artifact, resamples: int, conditions: tuple[str, ...] = ()) -> Study:
        """Read an evaluation and set tasks aside that the full cache fails."""
        settings = evaluated.read_json("arms.json")
        about = settings.pop("arms")
        texts: dict[str, Rows] = {name: [] for name in about}
        prompts: dict[str, Rows] = {name: [] for name in about}
        for row in evaluated.read_rows("predictions.jsonl"):
            (texts if row["group"] == "text" else prompts)[row["set"]].append(row)
        scores: dict[tuple[str, int], list[float]] = {}
        for row in prompts["dense"]:
            scores.setdefault((row["group"], row["length"]), []).append(row["score"])
        means = {key: float(np.mean(found)) for key, found in scores.items()}
        dropped = {key: mean for key, mean in means.items() if mean < _FLOOR}
        kept = {
            arm: [row for row in rows if (row["group"], row["length"]) not in dropped]
            for arm, rows in prompts.items()
        }
        return cls(texts, kept, dropped, about, settings, resamples, conditions)

    def title(self, arm: str) -> str:
        """Name of an arm."""
        return arm_title(self.about[arm])

    @property
    def prompted(self) -> int:
        """Long prompts that count."""
        return len(self.prompts["dense"])

    def bytes_per_token(self, arm: str) -> float:
        """Bytes held per token of the context, all layers, over the texts if there are any."""
        rows = self.texts[arm] or self.prompts[arm]
        return sum(row["bytes"] for row in rows) / sum(row["context_tokens"] for row in rows)

    def saving(self, arm: str) -> float:
        """Share of the full cache's bytes that an arm does not hold."""
        return 1 - self.bytes_per_token(arm) / self.bytes_per_token("dense")

    def mean(self, arm: str, key: str) -> Interval:
        """Mean over windows, or over prompts for `score`."""
        bounds = (0, 1) if key in ("score", "agree") else (0, np.inf)
        return estimate(self._values(arm, key), bounds=bounds, resamples=self.resamples)

    def change(
        self,
        arm: str,
        other: str,
        key: str,
        transform: Callable[[np.ndarray], np.ndarray] = lambda means: means,
    ) -> Interval:
        """Difference of two arms on the same examples; `transform` is applied to its mean."""
        difference = self._values(arm, key) - self._values(other, key)
        return estimate(difference, transform=transform, resamples=self.resamples)

    def perplexity_change(self, arm: str, other: str) -> Interval:
        """Relative change of perplexity."""
        return self.change(arm, other, "nll", transform=np.expm1)

    def _values(self, arm: str, key: str) -> np.ndarray:
        rows = (self.prompts if key == "score" else self.texts)[arm]
        return np.array([row[key] for row in rows], dtype=np.float64)


def quality_table(study: Study, arms: Sequence[str], note: str = "") -> Table:
    """Bytes beside what they buy."""
    rows = []
    for arm in arms:
        dense = arm == "dense"
        rows.append(
            [
                study.title(arm),
                f"{study.bytes_per_token(arm):,.0f}",
                "" if dense else f"{100 * study.saving(arm):.1f}",
                interval(study.mean(arm, "kl"), 4),
                ""
                if dense
                else interval(study.perplexity_change(arm, "dense"), 1, sign=True, scale=100),
                f"{100 * study.mean(arm, 'agree').value:.1f}",
                *([interval(study.mean(arm, "score"), 1, scale=100)] if study.prompted else []),
            ]
        )
    columns = ["", "Bytes per token", "saved, %", "KL, nats", "perplexity, %", "same top token, %"]
    return Table([*columns, *(["answers, %"] if study.prompted else [])], rows, note=note)


def pair_table(study: Study, pairs: Sequence[tuple[str, str]]) -> Table:
    """Differences of two arms on the same examples."""
    rows = []
    for arm, other in pairs:
        if not {arm, other} <= study.about.keys():
            continue
        kl = study.change(arm, other, "kl")
        better = sum(
            one["kl"] < two["kl"]
            for one, two in zip(study.texts[arm], study.texts[other], strict=True)
        )
        rows.append(
            [
                f"{study.title(arm)} against {study.title(other)}",
                f"{study.bytes_per_token(arm) / study.bytes_per_token(other):.3f}",
                interval(kl, 4, sign=True),
                f"{better} of {len(study.texts[arm])}",
                interval(study.perplexity_change(arm, other), 1, sign=True, scale=100),
                *([_points(study, arm, other)] if study.prompted else []),
            ]
        )
    columns = ["", "bytes, ratio", "KL, difference", "windows with less KL", "perplexity, %"]
    return Table(
        [*columns, *(["answers, points"] if study.prompted else [])],
        rows,
        note="Paired by example: negative KL and positive answers favour the first.",
    )


def answer_table(study: Study, pairs: Sequence[tuple[str, str]]) -> Table:
    """Answers of two arms to the same prompts."""
    rows = [
        [
            f"{study.title(arm)} against {study.title(other)}",
            f"{study.bytes_per_token(arm) / study.bytes_per_token(other):.3f}",
            interval(study.mean(arm, "score"), 1, scale=100),
            interval(study.mean(other, "score"), 1, scale=100),
            _points(study, arm, other),
        ]
        for arm, other in pairs
        if {arm, other} <= study.about.keys()
    ]
    return Table(
        ["", "bytes, ratio", "answers, %", "of the other, %", "points"],
        rows,
        note=f"{study.prompted} prompts, paired; positive points favour the first.",
    )


def _points(study: Study, arm: str, other: str) -> str:
    return interval(study.change(arm, other, "score"), 1, sign=True, scale=100)


def task_table(study: Study, arms: Sequence[str]) -> Table:
    """Answers by kind of prompt."""
    groups = list(dict.fromkeys((row["group"], row["length"]) for row in study.prompts["dense"]))
    rows = []
    for arm in arms:
        cells = []
        for group in groups:
            found = [
                row["score"] for row in study.prompts[arm] if (row["group"], row["length"]) == group
            ]
            cells.append(f"{100 * np.mean(found):.0f}")
        rows.append([study.title(arm), *cells])
    each = study.prompted // max(len(groups), 1)
    inside = "inside" if study.settings["question_inside"] else "after"
    return Table(
        ["% of answers", *(f"{task.replace('_', ' ')}, {length}" for task, length in groups)],
        rows,
        note=f"{each} prompts each; the question comes {inside} the compressed cache. An answer "
        "counts if greedy decoding would write it, after the true ones before it.",
    )


def dropped_tasks(study: Study) -> str:
    """Tasks that are left out everywhere, and why."""
    dropped = "; ".join(
        f"{task.replace('_', ' ')} at {length} ({100 * score:.0f} %)"
        for (task, length), score in study.dropped.items()
    )
    reason = f"because the full cache answers under {100 * _FLOOR:.0f} %"
    return f"Left out {reason}: {dropped or 'none'}."


def dense_arms(about: dict[str, Any]) -> list[str]:
    """Timed arms with a dense cache, the stock one first."""
    found = [name for name, one in about.items() if one["method"] is None]
    return sorted(found, key=lambda one: one != "dense")


def arm_name(about: dict[str, Any]) -> str:
    """A timed arm in words."""
    if about["method"] is None:
        return {"sdpa": "dense sdpa", "grouped": "dense, our grouped sdpa"}[about["reading"]]
    return f"{arm_title(about['method'])}, {_READINGS[about['reading']]}"


def time_ratio(rows: Rows, arm: str, other: str, length: int) -> Interval:
    """Time per decoded token of one arm over another's, repeat by repeat."""
    seconds = [
        [row["decode_seconds"] for row in rows if row["set"] == one and row["length"] == length]
        for one in (arm, other)
    ]
    return estimate(
        np.stack(seconds, axis=1),
        transform=lambda m: m[..., 0] / m[..., 1],
        bounds=(0, np.inf),
    )


def timing_table(benched: Artifact) -> Table:
    """Time per decoded token and of the prompt, over the dense caches'."""
    about = benched.read_json("arms.json")
    steps = benched.manifest["config"]["steps"]
    rows = benched.read_rows("predictions.jsonl")
    dense = dense_arms(about)
    table = []
    for length in dict.fromkeys(row["length"] for row in rows):
        first = {row["set"]: row for row in rows if row["length"] == length}
        for name in sorted(about, key=lambda one: one not in dense):
            seconds = [
                row["decode_seconds"]
                for row in rows
                if row["set"] == name and row["length"] == length
            ]
            prompt = first[name]["prefill_seconds"]
            table.append(
                [
                    arm_name(about[name]),
                    f"{length:,}",
                    f"{first[name]['bytes'] / 1e6:.1f}",
                    f"{1000 * np.mean(seconds) / steps:.1f}",
                    *(
                        "" if name == one else interval(time_ratio(rows, name, one, length), 2)
                        for one in dense
                    ),
                    f"{prompt:.2f}",
                    "" if name == "dense" else f"{prompt / first['dense']['prefill_seconds']:.3f}",
                ]
            )
    over = [f"over {arm_name(about[one])}" for one in dense]
    return Table(
        ["", "tokens", "MB", "ms per token", *over, "prompt, s", "over dense, prompt"],
        table,
        note="Arms take turns behind the same prompt; intervals over repeats. Prompt times are the "
        "best of two and include packing.",
    )
