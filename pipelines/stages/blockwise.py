"""Stop and go on at any decoder block: shared by the stages that stream windows through a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from effllm.modules.errors import NumericalError
from effllm.pipelines.stage import StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.calibration.stream import BlockStream
    from effllm.modules.modeling.blocks import LinearLayer

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


def blocks_left(ctx: StageContext, count: int) -> Iterator[int]:
    """Numbers of the blocks that are not stored yet; `save_block` each before the next."""
    for index in range(count):
        if ctx.load_progress(block_name(index)) is None:
            yield index
        ctx.progress(index + 1, count, "block")


def save_block(ctx: StageContext, index: int, **parts: Mapping[str, Tensor]) -> None:
    """Store what was made of a block: kind, such as `weight` or `mask` -> layer -> tensor."""
    tensors = {
        f"{kind}/{name}": tensor.cpu()
        for kind, found in parts.items()
        for name, tensor in found.items()
    }
    ctx.save_progress(block_name(index), tensors)


def install(
    ctx: StageContext, layers: Mapping[str, LinearLayer], count: int
) -> dict[str, dict[str, Tensor]]:
    """Write the stored weights of blocks into a model, in place.

    Args:
        ctx: of the stage that saved them.
        layers: as of `prunable_layers`.
        count: first so many blocks were saved.

    Returns:
        What else was stored: kind -> `<block>.<name>` -> tensor, in the order of the blocks.
    """
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for index in range(count):
        stored = ctx.load_progress(block_name(index))
        assert stored is not None
        for key, value in stored.items():
            kind, _, name = key.partition("/")
            if kind == "weight":
                layers[f"{index}.{name}"].write(value)
            else:
                found[kind][f"{index}.{name}"] = value
    return found


def block_name(index: int) -> str:
    """Name of a block's progress file."""
    return f"block-{index:03d}"


def gram_name(index: int) -> str:
    """Name of the progress file with a block's Gram matrices."""
    return f"gram-{index:03d}"


def gram_files(ctx: StageContext, count: int) -> list[Path]:
    """These files of the first blocks."""
    return [ctx.progress_dir / f"{gram_name(index)}.safetensors" for index in range(count)]
