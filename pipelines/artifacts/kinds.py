"""All kinds by name, for results that are referred to from outside of a pipeline."""

from __future__ import annotations

import importlib
import pkgutil

from effllm.modules.errors import ArtifactError
from effllm.pipelines import artifacts
from effllm.pipelines.artifacts.base import Artifact


def kind_named(kind: str, where: str) -> type[Artifact]:
    """The reader of a kind of artifact.

    Args:
        kind: as in a manifest.
        where: reference to the artifact, for the message.

    Raises:
        ArtifactError: for a kind that is not known here.
    """
    for family in pkgutil.iter_modules(artifacts.__path__):
        importlib.import_module(f"{artifacts.__name__}.{family.name}")
    pending = [Artifact]
    while pending:
        found = pending.pop()
        if found.kind == kind:
            return found
        pending += found.__subclasses__()
    raise ArtifactError(f"{where}: this version of effllm cannot read {kind!r}; make it again")
