"""Gather what was measured of each model from a set of results.

The rows of a report are models. Which model a result measured, how that model was made and what
it cost are facts of the manifests, not of names: results are grouped by the checkpoint they
measured, and a checkpoint's cost is the time of all stages that it was made by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.measured import Predictions

# Stages that every model shares; they are not part of what a method costs.
_SHARED = frozenset({"import_model", "import_text", "make_windows"})

Values = NDArray[np.float64]


@dataclass
class Subject:
    """One model and all that was measured of it.

    Attributes:
        label: `<stage>/<digest12>` of its checkpoint.
        history: what was done to it, oldest first, without the import.
        examples: set name -> values per example, in the order of the examples' ids.
        documents: set name -> the document of each example, for sets that are cut from documents.
        sizes: counted parameters, bytes of the file and of a cached token, if they were measured.
        layers: rows of the layer comparison, if there is one.
        histogram: the drawn layer's weights, if there is one.
        protocols: role (heldout, test) -> protocol of the windows.
        seconds: time of all stages that made it.
        seed: of the calibration windows; None for a model that never saw any.
        resumed: whether one of them was interrupted; its seconds count the last attempt only.
    """

    label: str
    history: list[dict[str, Any]]
    examples: dict[str, Values] = field(default_factory=dict)
    documents: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    histogram: dict[str, Any] | None = None
    protocols: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    seed: int | None = None
    resumed: bool = False

    @property
    def layer_error(self) -> float | None:
        """Mean relative output error on the original's held-out inputs."""
        return sum(row["error"] for row in self.layers) / len(self.layers) if self.layers else None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that were run."""
        return [name for name in self.examples if name not in ("heldout", "test", "kl")]


def gather_subjects(results: Iterable[Artifact]) -> list[Subject]:
    """All measured models, in the order of their histories."""
    everything = list(results)
    manifests = {artifact.label: artifact.manifest for artifact in everything}
    subjects: dict[str, Subject] = {}
    for artifact in everything:
        if not isinstance(artifact, Predictions):
            continue
        facts = artifact.subject
        label = facts["checkpoint"]
        if label not in subjects:
            behind = ancestors(label, manifests)
            made_by = [one for one in behind if one["stage"] not in _SHARED]
            windows = [one for one in behind if one["config"].get("split") == "calibration"]
            subjects[label] = Subject(
                label,
                facts["history"][1:],
                seconds=sum(float(one["timing"]["seconds"]) for one in made_by),
                seed=windows[0]["seed"] if windows else None,
                resumed=any(one["timing"]["resumed"] for one in made_by),
            )
        subject = subjects[label]
        _add(subject, artifact)
    return sorted(subjects.values(), key=lambda one: (len(one.history), str(one.history)))


def _add(subject: Subject, artifact: Predictions) -> None:
    rows = artifact.rows()
    stage = artifact.manifest["stage"]
    if stage == "compare_layers":
        subject.layers = rows
        subject.histogram = artifact.read_json("histogram.json")
        return
    value = {"perplexity": "nll", "compare_dense": "kl"}.get(stage, "correct")
    if stage == "compare_dense":
        subject.sizes = artifact.read_json("sizes.json")
    for name in dict.fromkeys(row["set"] for row in rows):
        chosen = sorted((row for row in rows if row["set"] == name), key=lambda row: row["id"])
        subject.examples[name] = np.array([row[value] for row in chosen], dtype=np.float64)
        if "document" in chosen[0]:
            subject.documents[name] = [row["document"] for row in chosen]
        if stage == "perplexity":
            subject.protocols[name] = chosen[0]["protocol"]


def ancestors(label: str, manifests: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Manifests of all stages behind a checkpoint, each once."""
    seen: set[str] = set()
    pending = [label]
    while pending:
        one = pending.pop()
        if one in seen or one not in manifests:
            continue
        seen.add(one)
        for value in manifests[one]["inputs"].values():
            pending += value if isinstance(value, list) else [value]
    return [manifests[one] for one in sorted(seen)]
