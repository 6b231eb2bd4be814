"""What reports have in common: a warning on top of smoke runs, and the cost at the end."""

from collections.abc import Sequence

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.reports.page import Text

_SHOWN = 6  # stages


def smoke_warning(scale: str) -> list[Text]:
    """A warning for smoke runs, nothing for others."""
    if scale != "smoke":
        return []
    return [
        Text(
            "This is a smoke run: a tiny random model on random sentences. It shows that the "
            "machinery works; its figures mean nothing."
        )
    ]


def cost(results: Sequence[Artifact]) -> Text:
    """Time by stage, peak memory, disk and machine, from the manifests."""
    manifests = [artifact.manifest for artifact in results]
    by_stage: dict[str, float] = {}
    for one in manifests:
        by_stage[one["stage"]] = by_stage.get(one["stage"], 0.0) + one["timing"]["seconds"]
    longest = sorted(by_stage.items(), key=lambda item: -item[1])[:_SHOWN]
    shown = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in longest)
    peaks = [one["timing"]["peak_rss_bytes"] or 0 for one in manifests]
    stored = sum(entry["bytes"] for one in manifests for entry in one["outputs"].values())
    warned = sum(len(one["warnings"]) for one in manifests)
    environment = manifests[0]["env"]
    machines = dict.fromkeys(
        f"{m['env']['device']}, {m['env']['threads']} threads" for m in manifests
    )
    versions = ", ".join(f"{k} {v}" for k, v in environment["packages"].items() if v)
    return Text(
        f"{len(manifests)} results, {sum(by_stage.values()) / 60:.1f} minutes of stages (most: "
        f"{shown}), peak memory {max(peaks) / 2**30:.1f} GiB, {stored / 1e9:.1f} GB stored, "
        f"{warned} warnings. Measured on {'; '.join(machines)}. "
        f"Python {environment['python']}, {versions}."
    )
