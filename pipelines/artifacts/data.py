"""What is read and measured on: texts, windows, prompts, tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllm.modules.errors import ArtifactError
from effllm.pipelines.artifacts.base import Artifact

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.data.long_prompts import LongPrompt
    from effllm.modules.data.prompts import Prompt
    from effllm.modules.data.texts import Document


class Corpus(Artifact):
    """Documents by split, one JSONL file each."""

    kind = "corpus"

    def documents(self, split: str) -> list[Document]:
        """All documents of a split.

        Raises:
            ArtifactError: if the corpus has no such split.
        """
        from effllm.modules.data.texts import Document

        file = f"{split}.jsonl"
        if not (self.path / file).is_file():
            raise ArtifactError(
                f"{self.label} has no split {split!r}; it has {', '.join(self.info['splits'])}"
            )
        return [Document(row["id"], row["text"]) for row in self.read_rows(file)]

    @property
    def info(self) -> dict[str, Any]:
        """Name, joiner, and documents and characters per split."""
        return dict(self.read_json("corpus.json"))


class Windows(Artifact):
    """(N, T) token ids, and a label that says how they were made."""

    kind = "windows"

    def token_ids(self) -> Tensor:
        """(N, T) int64."""
        from safetensors.torch import load_file

        return load_file(self.path / "windows.safetensors")["input_ids"].long()

    @property
    def protocol(self) -> str:
        """Short text for metric names, such as `enwiki-test-512x24`."""
        return str(self.read_json("windows.json")["protocol"])

    @property
    def documents(self) -> list[str]:
        """The document that each of the N windows is from."""
        return list(self.read_json("windows.json")["documents"])

    def rows(self, name: str, key: str, values: Tensor) -> list[dict[str, object]]:
        """(N,) values as rows of predictions: set, protocol, id, document, and `key`."""
        protocol, measured = self.protocol, values.tolist()
        return [
            {"set": name, "protocol": protocol, "id": number, "document": document, key: value}
            for number, (document, value) in enumerate(zip(self.documents, measured, strict=True))
        ]


class Prompts(Artifact):
    """Prompts for decoding, one object per line of `prompts.jsonl`."""

    kind = "prompts"

    def prompts(self) -> list[Prompt]:
        """All prompts."""
        from effllm.modules.data.prompts import Prompt

        return [Prompt(**row) for row in self.read_rows("prompts.jsonl")]


class LongPrompts(Artifact):
    """Long prompts with checkable answers, one object per line of `prompts.jsonl`."""

    kind = "long prompts"

    def prompts(self) -> list[LongPrompt]:
        """All prompts."""
        from effllm.modules.data.long_prompts import LongPrompt

        return [LongPrompt(**row) for row in self.read_rows("prompts.jsonl")]


class Tasks(Artifact):
    """Local lm-evaluation-harness tasks: YAML files beside their JSONL items."""

    kind = "tasks"

    @property
    def names(self) -> list[str]:
        """Names of the tasks."""
        return [str(name) for name in self.read_json("tasks.json")["names"]]
