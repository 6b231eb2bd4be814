"""A published result, as a typed reader over its folder.

A reader knows the file names and formats of its kind and nothing else. Tensors are safetensors,
tables JSONL, everything else JSON; nothing is pickled. A stage imports the kinds that it uses from
their own file, so that its code fingerprint holds no other method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Artifact:
    """A published result: its folder and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    kind: ClassVar[str] = "artifact"

    @property
    def label(self) -> str:
        """`<stage>/<digest12>`."""
        return f"{self.manifest['stage']}/{self.manifest['digest'][:12]}"

    def read_json(self, name: str) -> Any:
        """Content of a JSON file of this artifact."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """Objects of a JSONL file of this artifact."""
        with (self.path / name).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
