"""Gather what was measured of each model from a set of results.

The rows of a report are models. Which model a result measured, how that model was made and what
it cost are facts of the manifests, not of names: results are grouped by the checkpoint they
measured, and a checkpoint's cost is the time of all stages that it was made by.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.reports.results import Results

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


def gather_subjects(results: Results) -> list[Subject]:
    """All measured models, in the order of their histories."""
    subjects: dict[str, Subject] = {}
    for measured in results.of(Predictions):
        facts = measured.subject
        label = facts["checkpoint"]
        if label not in subjects:
            lineage = results.lineage(label)
            made_by = [made for made in lineage if made["stage"] not in _SHARED]
            windows = [made for made in lineage if made["config"].get("split") == "calibration"]
            subjects[label] = Subject(
                label,
                facts["history"][1:],
                seconds=sum(float(made["timing"]["seconds"]) for made in made_by),
                seed=windows[0]["seed"] if windows else None,
                resumed=any(made["timing"]["resumed"] for made in made_by),
            )
        _add(subjects[label], measured)
    return sorted(
        subjects.values(), key=lambda subject: (len(subject.history), str(subject.history))
    )


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
