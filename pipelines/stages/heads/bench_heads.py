"""Decode the same prompts with drafting heads and what they are compared with, in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effllm.pipelines.artifacts.heads import Heads
from effllm.pipelines.stage import Many
from effllm.pipelines.stages.decoding.decode_bench import DecodeBench


@dataclass(frozen=True, kw_only=True)
class BenchHeads(DecodeBench):
    """The decoding benchmark with arms that draft by heads: `draft: {kind: heads, index}`."""

    INPUTS: ClassVar = {**DecodeBench.INPUTS, "heads": Many(Heads, ordered=True)}
