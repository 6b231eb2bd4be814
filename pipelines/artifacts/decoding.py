"""What decoding is prepared and judged with: traces, costs, recorded blocks, replays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.checkpoints import VOCABULARY_FILE, Checkpoint
from effllm.pipelines.files import write_json, write_rows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from effllm.modules.decoding.recording import RecordedBlock


def load_draft(checkpoint: Checkpoint, dtype: str, device: str = "cpu") -> PreTrainedModel:
    """A model as a drafter: with its reduced vocabulary, if it was distilled with one."""
    from safetensors.torch import load_file

    from effllm.modules.drafting.shape import reduce_vocabulary

    model = checkpoint.load_model(dtype, device)
    file = checkpoint.path / VOCABULARY_FILE
    return reduce_vocabulary(model, load_file(file)["token_ids"]) if file.is_file() else model


class Traces(Artifact):
    """Texts that a model wrote for many prompts, and what it found likely at every place."""

    kind = "traces"

    @staticmethod
    def write(folder: Path, traces: Mapping[str, Tensor]) -> None:
        """Write the file of traces.

        Args:
            folder: of the stage.
            traces: as of `load`, but the texts of each key joined, and `lengths` that part them.
        """
        from safetensors.torch import save_file

        save_file(dict(traces), folder / "traces.safetensors")

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


class PassCosts(Artifact):
    """What passes cost on one machine and what speculation would bring there."""

    kind = "pass costs"

    @staticmethod
    def write(folder: Path, figures: Mapping[str, Any]) -> None:
        """Write the file of costs."""
        write_json(folder / "costs.json", figures)

    @property
    def figures(self) -> dict[str, Any]:
        """Costs, bandwidth, and per arm the forecast for every K."""
        return dict(self.read_json("costs.json"))


class Blocks(Artifact):
    """Whole drafted blocks: `blocks.jsonl`, a position per line; `arms.json`, what drafted them."""

    kind = "blocks"

    @staticmethod
    def write(
        folder: Path, rows: Iterable[Mapping[str, Any]], arms: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Write the files of blocks; `rows` are `{arm, id, block}`."""
        write_rows(folder / "blocks.jsonl", rows)
        write_json(folder / "arms.json", arms)

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

    @staticmethod
    def write(
        folder: Path, rows: Iterable[Mapping[str, Any]], arms: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Write the files of a replay; `arms` are those of the blocks."""
        write_rows(folder / "replay.jsonl", rows)
        write_json(folder / "arms.json", arms)
