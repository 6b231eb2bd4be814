"""What is pruned: query heads (or key-value groups) and feed-forward neurons.

Each block has two sub-layers with one key matrix each, whose input channels fall into units: the
attention output projection with one head per unit, the last feed-forward matrix with one neuron per
unit. Only the key matrix gets new values; all else is sliced when the model is made compact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effllm.modules.errors import ConfigError, UnsupportedModelError
from effllm.modules.modeling.blocks import LinearLayer, decoder_blocks

Kind = Literal["attention", "ffn"]
AttentionUnit = Literal["head", "kv_group"]
KINDS: tuple[Kind, ...] = ("attention", "ffn")


@dataclass(frozen=True)
class SubLayer:
    """One half of a decoder block.

    Attributes:
        block: its decoder block.
        kind: `attention` or `ffn`.
        key: name of the key matrix in the block.
        units: prunable units.
        size: input channels of the key matrix per unit.
        heads: query heads per unit; 0 for a neuron.
    """

    block: int
    kind: Kind
    key: str
    units: int
    size: int
    heads: int = 0

    @property
    def name(self) -> str:
        """`block-003-ffn`, also the name of its files."""
        return f"block-{self.block:03d}-{self.kind}"

    def channels(self, units: Tensor) -> Tensor:
        """(k,) unit numbers -> (k * size,) input channels of the key matrix."""
        return (units[:, None] * self.size + torch.arange(self.size)).reshape(-1)


@dataclass(frozen=True)
class Kept:
    """What is left of a sub-layer.

    Attributes:
        units: (k,) int64, rising.
        weight: (R, k * size) key matrix on the kept channels.
        bias: (R,) added to the key matrix's output, or None.
    """

    units: Tensor
    weight: Tensor
    bias: Tensor | None = None


def sublayers(model: PreTrainedModel, attention_unit: AttentionUnit = "head") -> list[SubLayer]:
    """All sub-layers of a model, attention before feed-forward, block by block.

    Args:
        model: decoder-only transformer with separate projections.
        attention_unit: `head` prunes query heads, `kv_group` the heads that share keys and values.

    Raises:
        UnsupportedModelError: for fused projections or blocks of another shape.
        ConfigError: for another unit.
    """
    if attention_unit not in ("head", "kv_group"):
        raise ConfigError(f"attention_unit: head or kv_group, found {attention_unit!r}")
    found = []
    for index, block in enumerate(decoder_blocks(model)):
        parts = parts_of(block)
        heads, kv_heads, size = attention_shape(block)
        shared = heads // kv_heads if attention_unit == "kv_group" else 1
        found.append(
            SubLayer(index, "attention", parts["o"], heads // shared, size * shared, shared)
        )
        neurons = LinearLayer(parts["down"], block.get_submodule(parts["down"])).columns
        found.append(SubLayer(index, "ffn", parts["down"], neurons, 1))
    return found


def parts_of(block: nn.Module) -> dict[str, str]:
    """Names of a block's projections: q, k, v, o, up, down, and gate if there is one.

    Raises:
        UnsupportedModelError: names what was looked for.
    """
    shapes = (
        ({"o": "self_attn.o_proj"}, {"gate": "mlp.gate_proj", "up": "mlp.up_proj",
                                     "down": "mlp.down_proj"}),
        ({"o": "self_attn.out_proj"}, {"up": "fc1", "down": "fc2"}),
    )  # fmt: skip
    common = {one: f"self_attn.{one}_proj" for one in "qkv"}
    linear = {name for name, one in block.named_modules() if isinstance(one, nn.Linear)}
    for attention, feed_forward in shapes:
        parts = {**common, **attention, **feed_forward}
        if set(parts.values()) == linear:
            return parts
    raise UnsupportedModelError(
        f"{type(block).__name__}: expected separate q, k, v and output projections and a "
        f"feed-forward network of two or three layers, found {', '.join(sorted(linear)) or 'none'};"
        " fused projections and mixtures of experts are not supported"
    )


def attention_shape(block: Any) -> tuple[int, int, int]:
    """Query heads, key-value heads and head size, read off the weights.

    Raises:
        UnsupportedModelError: if they do not divide.
    """
    parts, size = parts_of(block), int(block.self_attn.head_dim)
    query, key = (int(block.get_submodule(parts[one]).weight.shape[0]) for one in "qk")
    if query % size or key % size or query % key:
        raise UnsupportedModelError(
            f"{type(block).__name__}: {query} query and {key} key channels do not divide into "
            f"heads of {size}"
        )
    return query // size, key // size, size


def key_matrix(model: PreTrainedModel, sublayer: SubLayer) -> LinearLayer:
    """The key matrix of a sub-layer."""
    block = decoder_blocks(model)[sublayer.block]
    return LinearLayer(sublayer.key, block.get_submodule(sublayer.key))


def padded(sublayer: SubLayer, kept: Kept) -> Tensor:
    """(R, C) key matrix with zeros for the removed units."""
    full = kept.weight.new_zeros(len(kept.weight), sublayer.units * sublayer.size)
    full[:, sublayer.channels(kept.units)] = kept.weight
    return full


def uniform_removals(units: Sequence[int], sparsity: float) -> list[int]:
    """Removed units per sub-layer for one sparsity, the total rounded once.

    The remainder is spread evenly over depth, so that no sub-layer is a unit off its share.

    Args:
        units: units of each sub-layer of one kind, in depth order.
        sparsity: share to remove, 0 <= sparsity < 1.

    Raises:
        ConfigError: if the sparsity is out of range, or would remove every unit.

    Source: ours (largest remainder, spread over depth).
    """
    if not 0 <= sparsity < 1:
        raise ConfigError(f"sparsity: expected 0 <= sparsity < 1, found {sparsity}")
    removed, before, reached = [], 0, 0
    for count in units:
        before += count
        wanted = int(sparsity * before + 0.5)
        removed.append(wanted - reached)
        reached = wanted
    if reached == sum(units):
        raise ConfigError(f"sparsity {sparsity} removes all {reached} units of a kind; lower it")
    return removed


def uniform_targets(layers: Sequence[SubLayer], sparsity: float) -> dict[str, int]:
    """Removed units per sub-layer name: heads and neurons each meet their own budget."""
    targets: dict[str, int] = {}
    for kind in KINDS:
        mine = [one for one in layers if one.kind == kind]
        removals = uniform_removals([one.units for one in mine], sparsity)
        targets |= {one.name: count for one, count in zip(mine, removals, strict=True)}
    return {one.name: targets[one.name] for one in layers}
