"""What is read and measured on: texts, windows, prompts, tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.modules.errors import ArtifactError, ConfigError
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.files import write_json, write_rows

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.data.long_prompts import LongPrompt
    from effllm.modules.data.prompts import Prompt
    from effllm.modules.data.texts import Document

_PROMPTS = "prompts.jsonl"


class Corpus(Artifact):
    """Documents by split, one JSONL file each."""

    kind = "corpus"

    @staticmethod
    def write(
        folder: Path, documents: Mapping[str, Iterable[Document]], name: str, joiner: str
    ) -> None:
        """Write the files of a corpus.

        Args:
            folder: of the stage.
            documents: split -> its documents.
            name: of the set.
            joiner: what stands between two documents.
        """
        for split, found in documents.items():
            rows = ({"id": document.id, "text": document.text} for document in found)
            write_rows(folder / f"{split}.jsonl", rows)
        info = {"name": name, "joiner": joiner, "splits": list(documents)}
        write_json(folder / "corpus.json", info)

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

    @staticmethod
    def write(folder: Path, windows: Tensor, protocol: str, documents: Sequence[str]) -> None:
        """Write the files of windows.

        Args:
            folder: of the stage.
            windows: (N, T) int64.
            protocol: as it is read.
            documents: as they are read.
        """
        from safetensors.torch import save_file

        save_file({"input_ids": windows.int()}, folder / "windows.safetensors")
        digest = hashlib.sha256(windows.numpy().tobytes()).hexdigest()
        facts = {"protocol": protocol, "token_sha256": digest, "documents": list(documents)}
        write_json(folder / "windows.json", facts)

    def token_ids(self) -> Tensor:
        """(N, T) int64."""
        from safetensors.torch import load_file

        return load_file(self.path / "windows.safetensors")["input_ids"].long()

    def model_inputs(self) -> Tensor:
        """What a model is given: token ids here, pixels of pictures."""
        return self.token_ids()

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


class Images(Windows):
    """Pictures and their classes, for what takes windows of text and asks for `model_inputs`."""

    kind = "images"

    @staticmethod
    def write(folder: Path, pixels: Tensor, labels: Tensor, protocol: str) -> None:  # type: ignore[override] # of other files
        """Write the files of pictures.

        Args:
            folder: of the stage.
            pixels: (N, channels, height, width) float32.
            labels: (N,) int64.
            protocol: short text for metric names, such as `digits-test-697`.
        """
        from safetensors.torch import save_file

        save_file({"pixels": pixels.contiguous(), "labels": labels}, folder / "images.safetensors")
        write_json(folder / "images.json", {"protocol": protocol})

    def model_inputs(self) -> Tensor:
        """(N, channels, height, width) float32."""
        return self._tensors()["pixels"]

    def labels(self) -> Tensor:
        """(N,) int64 classes."""
        return self._tensors()["labels"]

    def token_ids(self) -> Tensor:
        """Refuse: pictures have none.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.label} are pictures; this stage needs windows of text")

    @property
    def protocol(self) -> str:
        """As it was written."""
        return str(self.read_json("images.json")["protocol"])

    def _tensors(self) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(self.path / "images.safetensors")


class Prompts(Artifact):
    """Prompts for decoding, one object per line."""

    kind = "prompts"

    @staticmethod
    def write(folder: Path, prompts: Iterable[Prompt]) -> None:
        """Write the file of prompts."""
        write_rows(folder / _PROMPTS, (asdict(prompt) for prompt in prompts))

    def prompts(self) -> list[Prompt]:
        """All prompts."""
        from effllm.modules.data.prompts import Prompt

        return [Prompt(**row) for row in self.read_rows(_PROMPTS)]


class LongPrompts(Artifact):
    """Long prompts with checkable answers, one object per line."""

    kind = "long prompts"

    @staticmethod
    def write(folder: Path, prompts: Iterable[LongPrompt]) -> None:
        """Write the file of prompts."""
        write_rows(folder / _PROMPTS, (asdict(prompt) for prompt in prompts))

    def prompts(self) -> list[LongPrompt]:
        """All prompts."""
        from effllm.modules.data.long_prompts import LongPrompt

        return [LongPrompt(**row) for row in self.read_rows(_PROMPTS)]


class Tasks(Artifact):
    """Local lm-evaluation-harness tasks: YAML files beside their JSONL items."""

    kind = "tasks"

    @staticmethod
    def write(folder: Path, tasks: Mapping[str, tuple[str, Iterable[Mapping[str, Any]]]]) -> None:
        """Write the files of tasks.

        Args:
            folder: of the stage.
            tasks: name -> its YAML text, with `{items}` and `{cache}` where paths will stand, and
                its items.
        """
        for name, (text, items) in tasks.items():
            write_rows(folder / f"{name}.jsonl", items)
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        write_json(folder / "tasks.json", {"names": list(tasks)})

    @property
    def names(self) -> list[str]:
        """Names of the tasks."""
        return [str(name) for name in self.read_json("tasks.json")["names"]]

    def place(self, folder: Path) -> Path:
        """Write the YAML files to `folder`, with the paths that are known only now; `folder`."""
        cache = (folder / "datasets").resolve()
        for name in self.names:
            text = (self.path / f"{name}.yaml").read_text(encoding="utf-8")
            items = (self.path / f"{name}.jsonl").resolve()
            filled = text.replace("{items}", str(items)).replace("{cache}", str(cache))
            (folder / f"{name}.yaml").write_text(filled, encoding="utf-8")
        return folder
