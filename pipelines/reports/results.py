"""The results that a report reads, and the rows that it hands on: one schema for all papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from effllm.modules.errors import DataError
from effllm.modules.evaluation.intervals import Interval
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.stage import AnyArtifact


class Results(tuple[Artifact, ...]):
    """All results of a run, to be asked by stage, kind and label."""

    def of(self, kind: type[AnyArtifact]) -> list[AnyArtifact]:
        """Those of a kind."""
        return [artifact for artifact in self if isinstance(artifact, kind)]

    def by(self, stage: str) -> list[Artifact]:
        """Those that a stage made."""
        return [artifact for artifact in self if artifact.manifest["stage"] == stage]

    def first(
        self, stage: str, wanted: Callable[[Artifact], bool] = lambda artifact: True
    ) -> Artifact:
        """The first that a stage made, of those that are wanted.

        Raises:
            DataError: if there is none.
        """
        found = next(filter(wanted, self.by(stage)), None)
        if found is None:
            raise DataError(
                f"report: none of its {len(self)} results is of stage {stage} as it needs it; "
                "give the pipeline such a stage, or take the report away (~pipeline.report)"
            )
        return found

    def input(self, artifact: Artifact, slot: str, kind: type[AnyArtifact]) -> AnyArtifact:
        """What a result was made of.

        Raises:
            DataError: if that is not among the results.
        """
        label = artifact.manifest["inputs"][slot]
        found = next((one for one in self.of(kind) if one.label == label), None)
        if found is None:
            raise DataError(
                f"report: {label}, {slot} of {artifact.label}, is not among its results; give the "
                "report all results (inputs: {results: ['*']})"
            )
        return found

    def lineage(self, label: str) -> list[Mapping[str, Any]]:
        """Manifests of a result and of all that it was made of, each once, by label."""
        manifests = {artifact.label: artifact.manifest for artifact in self}
        seen: set[str] = set()
        pending = [label]
        while pending:
            made = pending.pop()
            if made in seen or made not in manifests:
                continue
            seen.add(made)
            for value in manifests[made]["inputs"].values():
                pending += value if isinstance(value, list) else [value]
        return [manifests[made] for made in sorted(seen)]

    @property
    def model(self) -> str:
        """Name of the model that the run began with."""
        return str(self.first("import_model").manifest["sources"]["source"]["name"])

    @property
    def texts(self) -> list[str]:
        """Names of the texts and prompts that the run is reported on."""
        imported = [
            made.manifest
            for made in self
            if "test" in made.manifest["config"].get("splits", ())
            or made.manifest["stage"] in ("import_prompts", "import_long_prompts")
        ]
        return sorted({str(one["sources"]["source"]["name"]) for one in imported})


@dataclass(frozen=True)
class ResultRow:
    """A row of `results.json`; `ReportStage` adds scale, model and texts to it.

    Attributes:
        paper: whose report it stands in.
        method: what was measured; the same name in every run.
        title: its name in tables.
        pattern: share or pattern of a pruned model, pair of models; empty if there is none.
        seed: of calibration or training; several if the row is their mean, None if none was drawn.
        artifact: the results that the figures were computed from.
        figures: name -> number, or estimate with its interval.
        n: name of a figure -> examples that it rests on.
    """

    paper: str
    method: str
    title: str
    pattern: str
    seed: int | list[int] | None
    artifact: str | list[str]
    figures: Mapping[str, Interval | float | None]
    n: Mapping[str, int]

    @property
    def plain(self) -> dict[str, Any]:
        """As it is written: values under `metrics`, `[low, high]` under `intervals`."""
        fields = {name: value for name, value in vars(self).items() if name != "figures"}
        known = {key: one for key, one in self.figures.items() if isinstance(one, Interval)}
        return {
            **fields,
            "metrics": {
                key: one.value if isinstance(one, Interval) else one
                for key, one in self.figures.items()
            },
            "intervals": {key: one.ends for key, one in known.items()},
        }
