"""Kinds of stored results, as typed readers over a published folder.

A reader knows the file names and formats of its kind and nothing else. Tensors are safetensors,
tables JSONL, everything else JSON; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.errors import ArtifactError, ConfigError
from effllm.pipelines.files import write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from effllm.modules.data.long_prompts import LongPrompt
    from effllm.modules.data.prompts import Prompt
    from effllm.modules.data.texts import Document
    from effllm.modules.decoding.recording import RecordedBlock
    from effllm.modules.evaluation.divergence import Teacher
    from effllm.modules.structural.supernet import Supernet

HISTORY_FILE = "effllm.json"
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len")  # what families call it
VOCABULARY_FILE = "draft_vocabulary.safetensors"


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


def kind_named(kind: str, where: str) -> type[Artifact]:
    """The reader of a kind of artifact.

    Args:
        kind: as in a manifest.
        where: reference to the artifact, for the message.

    Raises:
        ArtifactError: for a kind that is not known here.
    """
    pending = [Artifact]
    while pending:
        found = pending.pop()
        if found.kind == kind:
            return found
        pending += found.__subclasses__()
    raise ArtifactError(f"{where}: this version of effllm cannot read {kind!r}; make it again")


class Checkpoint(Artifact):
    """A model folder in Hugging Face format with tokenizer, history, and masks if pruned."""

    kind = "checkpoint"

    def require_context(self, tokens: int, what: str) -> None:
        """See that the model was made for texts of so many tokens.

        Raises:
            ConfigError: if it was not, though some models would read on.
        """
        config = self.read_json("config.json")
        config = config.get("text_config") or config
        limit = next((config[key] for key in _CONTEXTS if config.get(key)), None)
        if limit is not None and tokens > limit:
            raise ConfigError(
                f"{what}: {tokens} tokens are more than the model's context of {limit}; take "
                "fewer, or a model with a longer one (model=…)"
            )

    def load_model(
        self, dtype: str, device: str = "cpu", device_map: str | None = None
    ) -> PreTrainedModel:
        """The model in `dtype`, ready for inference, on `device` or as `device_map` spreads it."""
        from effllm.modules.structural.compact import load_any

        model = load_any(self.path, dtype, device_map, trust_remote_code=self.trusts_code)
        if device_map is None:
            model.to(device)  # type: ignore[arg-type] # its wrapper hides the method
        return model.eval()

    def load_draft(self, dtype: str, device: str = "cpu") -> PreTrainedModel:
        """The model as a drafter: with its reduced vocabulary, if it was distilled with one."""
        from safetensors.torch import load_file

        from effllm.modules.drafting.shape import reduce_vocabulary

        model = self.load_model(dtype, device)
        file = self.path / VOCABULARY_FILE
        return reduce_vocabulary(model, load_file(file)["token_ids"]) if file.is_file() else model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        from effllm.modules.structural.compact import load_tokenizer

        return load_tokenizer(self.path, trust_remote_code=self.trusts_code)

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was done to the model, oldest first: `{"stage": ..., ...}`."""
        return list(self.read_json(HISTORY_FILE)["history"])

    @property
    def trusts_code(self) -> bool:
        """Whether code that came with the model may run: as was said when it was imported."""
        return any(step.get("trust_remote_code", False) for step in self.history)

    def masks(self) -> dict[str, Tensor]:
        """(R, C) bool masks, True = kept, keyed `<block>.<layer>`.

        Raises:
            ArtifactError: if the checkpoint was never pruned.
        """
        from safetensors.torch import load_file

        from effllm.modules.sparsity.masks import unpack_mask

        file = self.path / "masks.safetensors"
        if not file.is_file():
            raise ArtifactError(f"{self.label} has no masks: expected a pruned checkpoint")
        columns = self.read_json("masks.json")
        return {name: unpack_mask(value, columns[name]) for name, value in load_file(file).items()}


def write_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    history: list[dict[str, Any]],
    masks: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a Checkpoint's files; masks at eight weights a byte, uneven models with their code."""
    from safetensors.torch import save_file

    from effllm.modules.sparsity.masks import pack_mask
    from effllm.modules.structural.compact import save_code

    model.save_pretrained(folder)
    save_code(model, folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / HISTORY_FILE, {"history": history})
    if masks is not None:
        save_file({k: pack_mask(v) for k, v in masks.items()}, folder / "masks.safetensors")
        write_json(folder / "masks.json", {name: mask.shape[1] for name, mask in masks.items()})


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


class Grams(Artifact):
    """Input Gram matrices of every prunable layer, one file per decoder block."""

    kind = "grams"

    def block(self, index: int) -> dict[str, Tensor]:
        """(C, C) float32 per layer name of one block; layers with equal inputs share it."""
        from safetensors.torch import load_file

        stored = load_file(self.path / f"block-{index:03d}.safetensors")
        groups = self.read_json("groups.json")[index]
        return {name: stored[group[0]] for group in groups for name in group}


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


class Traces(Artifact):
    """Texts that a model wrote for many prompts, and what it found likely at every place."""

    kind = "traces"

    def load(self) -> dict[str, list[Tensor]]:
        """One tensor per text under each key.

        Returns:
            `tokens` (L,), prompt included; `likely` (L, top) token ids of which row t is about
            token t + 1; their `probabilities` (L, top), 0 in the last row; `prompt_lengths` ().
        """
        from safetensors.torch import load_file

        stored = load_file(self.path / "traces.safetensors")
        lengths = stored["lengths"].tolist()
        return {
            "tokens": list(stored["tokens"].long().split(lengths)),
            "likely": list(stored["likely"].long().split(lengths)),
            "probabilities": list(stored["probabilities"].split(lengths)),
            "prompt_lengths": list(stored["prompt_lengths"]),
        }


class Tasks(Artifact):
    """Local lm-evaluation-harness tasks: YAML files beside their JSONL items."""

    kind = "tasks"

    @property
    def names(self) -> list[str]:
        """Names of the tasks."""
        return [str(name) for name in self.read_json("tasks.json")["names"]]


class PassCosts(Artifact):
    """What passes cost on one machine and what speculation would bring there."""

    kind = "pass costs"

    @property
    def figures(self) -> dict[str, Any]:
        """Costs, bandwidth, and per arm the forecast for every K."""
        return dict(self.read_json("costs.json"))


class Predictions(Artifact):
    """Per-example results of one model, so that models can be compared pair by pair.

    `predictions.jsonl` has one object per example: `{"set", "id", ...values}`; `subject.json`
    has the history of the model that was measured.
    """

    kind = "predictions"

    @property
    def subject(self) -> dict[str, Any]:
        """`{"checkpoint": <label>, "history": [...]}` of the measured model."""
        return dict(self.read_json("subject.json"))

    def rows(self) -> list[dict[str, Any]]:
        """One object per example."""
        return self.read_rows("predictions.jsonl")


class Blocks(Artifact):
    """Whole drafted blocks: `blocks.jsonl`, a position per line; `arms.json`, what drafted them."""

    kind = "blocks"

    def arms(self) -> dict[str, dict[str, Any]]:
        """Arm -> its description."""
        return dict(self.read_json("arms.json"))

    def blocks(self, arm: str) -> dict[str, list[RecordedBlock]]:
        """Prompt id -> blocks of one arm at all positions, in order."""
        from effllm.modules.decoding.recording import RecordedBlock, RecordedMismatch

        found: dict[str, list[RecordedBlock]] = {}
        for row in self.read_rows("blocks.jsonl"):
            if row["arm"] == arm:
                mismatches = [RecordedMismatch(**one) for one in row["block"].pop("mismatches")]
                block = RecordedBlock(**row["block"], mismatches=mismatches)
                found.setdefault(row["id"], []).append(block)
        return found


class Replay(Artifact):
    """What other rules would have made of recorded blocks: `replay.jsonl`, a rule per line."""

    kind = "replay"


class SupernetFiles(Artifact):
    """Every key matrix at several sparsities: one file each, and `supernet.json`."""

    kind = "supernet"

    def open(self) -> Supernet:
        """The supernet; matrices are read when they are asked for.

        Raises:
            ArtifactError: if a file is missing.
        """
        from effllm.modules.structural.supernet import Supernet

        return Supernet.open(self.path, self.label)


class Allocation(Artifact):
    """A level for every sub-layer, `allocation.json`, and how it was found, `history.jsonl`."""

    kind = "allocation"

    @property
    def supernet(self) -> str:
        """Label of the supernet that it belongs to."""
        return str(self.read_json("allocation.json")["supernet"])

    @property
    def iteration(self) -> int:
        """Rounds of pruning and search that it stands for."""
        return int(self.read_json("allocation.json")["iteration"])

    def removed(self) -> dict[str, int]:
        """Sub-layer name -> removed units."""
        return dict(self.read_json("allocation.json")["removed"])


class TeacherRecord(Artifact):
    """A model's likeliest tokens at every position of some windows."""

    kind = "teacher"

    def teachers(self) -> list[Teacher]:
        """One per window."""
        from safetensors.torch import load_file

        from effllm.modules.evaluation.divergence import Teacher

        stored, kind = load_file(self.path / "teacher.safetensors"), self.read_json("teacher.json")
        ids = stored.get("ids")
        return [
            Teacher(kind["kind"], None if ids is None else ids[number], log_probs)
            for number, log_probs in enumerate(stored["log_probs"])
        ]


class Speeds(Artifact):
    """Times of several models on the same passes: `speeds.jsonl`, one pass per line."""

    kind = "speeds"


class Report(Artifact):
    """A self-contained page with its tables and figures."""

    kind = "report"
