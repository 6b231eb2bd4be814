"""What decoding is prepared and judged with: traces, costs, recorded blocks, replays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllm.pipelines.artifacts.base import Artifact

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.decoding.recording import RecordedBlock


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


class PassCosts(Artifact):
    """What passes cost on one machine and what speculation would bring there."""

    kind = "pass costs"

    @property
    def figures(self) -> dict[str, Any]:
        """Costs, bandwidth, and per arm the forecast for every K."""
        return dict(self.read_json("costs.json"))


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
