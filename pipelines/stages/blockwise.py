"""Stop and go on at any decoder block: shared by the stages that stream windows through a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from effllm.modules.errors import NumericalError
from effllm.pipelines.stage import StageContext

if TYPE_CHECKING:
    from effllm.modules.calibration.stream import BlockStream

_NAME = "stream"


def resume_stream(ctx: StageContext, stream: BlockStream) -> int:
    """Stand where an interrupted stage stopped; the number of blocks that are done."""
    stored = ctx.load_progress(_NAME)
    if stored is not None:
        stream.resume(int(stored["next_block"]), stored["hidden"])
    return stream.index


def save_stream(ctx: StageContext, stream: BlockStream) -> None:
    """Remember the hidden states in front of the current block; call when its results are saved."""
    import torch

    hidden = torch.cat(stream.hidden).cpu() if stream.hidden else torch.empty(0)
    ctx.save_progress(_NAME, {"hidden": hidden, "next_block": torch.tensor(stream.index)})
    ctx.progress(stream.index, len(stream.blocks), "block")


@contextmanager
def named_layer(index: int, layer: str) -> Iterator[None]:
    """Say in numerical errors where they arose."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(f"block {index}, layer {layer}: {error}") from error


def block_name(index: int) -> str:
    """Name of a block's progress file."""
    return f"block-{index:03d}"
