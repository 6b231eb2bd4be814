"""What an arm of the SparK report is called, and which arms stand beside each other."""

from __future__ import annotations

from typing import Any

About = dict[str, Any]

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
_READINGS = {"packed": "read packed", "sdpa": "rebuilt"}
# Setting -> its usual value, and another one in words.
_USUAL = {
    "saliency": ("code", "saliency {}"),
    "recovery": ("code", "recovery {}"),
    "signed": (True, "no signs"),
    "centred": (True, "not centred"),
    "block": (1, "{} tokens share channels"),
    "window": (32, "window {}"),
    "group_reduce": ("rms", "signed mean of queries"),
    "protect_first": (0, "first {} dense"),
    "protect_last": (32, "last {} dense"),
}


def arm_title(about: About) -> str:
    """What an arm is, in words; only what differs from the defaults is said."""
    parts = [
        part for part in (_evict(about["evict"]), _keys(about), _values(about["values"])) if part
    ]
    return " + ".join(parts) or "Full cache"


def _differences(about: About) -> list[str]:
    given = {**about["keys"], **about}
    found = [
        words.format(given[name]) for name, (usual, words) in _USUAL.items() if given[name] != usual
    ]
    return ["no dense tail" if one == "last 0 dense" else one for one in found]


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


def dense_arms(about: dict[str, Any]) -> list[str]:
    """Timed arms with a dense cache, the stock one first."""
    found = [name for name, one in about.items() if one["method"] is None]
    return sorted(found, key=lambda one: one != "dense")


def arm_name(about: dict[str, Any]) -> str:
    """A timed arm in words."""
    if about["method"] is None:
        return {"sdpa": "dense sdpa", "grouped": "dense, our grouped sdpa"}[about["reading"]]
    return f"{arm_title(about['method'])}, {_READINGS[about['reading']]}"
