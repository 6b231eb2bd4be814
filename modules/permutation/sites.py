"""Sites: the channels that must share one order, and how far an order can be deployed.

`gather`: every set of layers with equal inputs has an order of its own, for any model; a deployed
model reorders those inputs while it runs, once for each site. `free`: only orders that fold into
the weights, so that the model stays a plain one: the neurons of an MLP, the channels inside each
value head (the same for all query heads that read it), and one order of the residual stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effllm.modules.errors import UnsupportedModelError
from effllm.modules.modeling.blocks import LinearLayer, decoder_blocks, prunable_layers

Level = Literal["gather", "free"]
RESIDUAL = "residual"


@dataclass(frozen=True)
class Member:
    """Columns of one layer that a site's order applies to, in copies.

    Attributes:
        layer: `<block>.<name>`.
        columns: (copies, n) int64; each row lists the columns of the site's channels once.
    """

    layer: str
    columns: Tensor


@dataclass(frozen=True)
class Site:
    """Channels with one order.

    Attributes:
        name: `<block>.<first layer>`, with the head for attention, or `residual`.
        members: what reads the channels; equal in n.
    """

    name: str
    members: tuple[Member, ...]

    @property
    def columns(self) -> int:
        """Number of channels n."""
        return int(self.members[0].columns.shape[1])


def gather_sites(
    groups: Sequence[Sequence[Sequence[str]]], widths: Mapping[str, int]
) -> list[Site]:
    """A site for each set of layers with equal inputs.

    Args:
        groups: per block, layer names in call order, those with equal inputs together.
        widths: inputs of each layer, `<block>.<name>`.
    """
    return [
        Site(
            f"{index}.{group[0]}",
            tuple(
                Member(f"{index}.{name}", torch.arange(widths[f"{index}.{name}"])[None])
                for name in group
            ),
        )
        for index, block in enumerate(groups)
        for group in block
    ]


@dataclass(frozen=True)
class Fold:
    """Layers of a decoder block, by what they do with channels that may change places.

    Attributes:
        residual: what reads the residual stream.
        value: its last rows are the value heads.
        attention: what reads the heads.
        inner: what makes the neurons of the MLP.
        outer: what reads them.
    """

    residual: tuple[str, ...]
    value: str
    attention: str
    inner: tuple[str, ...]
    outer: str

    @property
    def layers(self) -> set[str]:
        """All of a block."""
        return {*self.residual, self.value, self.attention, *self.inner, self.outer}


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")
_VISION = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
# Llama, Mistral and Qwen; OPT; GPT-2, whose value heads are the last third of c_attn; ViT.
FOLDS = (
    Fold((*_QKV, *_GATED), "self_attn.v_proj", "self_attn.o_proj", _GATED, "mlp.down_proj"),
    Fold((*_QKV, "fc1"), "self_attn.v_proj", "self_attn.out_proj", ("fc1",), "fc2"),
    Fold(("attn.c_attn", "mlp.c_fc"), "attn.c_attn", "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj"),
    Fold((*_VISION, "mlp.fc1"), "attention.v_proj", "attention.o_proj", ("mlp.fc1",), "mlp.fc2"),
)


_TABLES = frozenset(  # whose columns are the residual stream
    {"embed_tokens", "wte", "tokens_embed", "embed_positions", "wpe", "positions_embed",
     "project_out", "lm_head", "classifier"}
)  # fmt: skip
_MAKERS = frozenset({"project_in", "projection"})  # whose rows are; the latter makes patches of ViT
_STATES = frozenset({"cls_token", "position_embeddings"})  # parameters of ViT that are added to it


def free_sites(model: PreTrainedModel) -> list[Site]:
    """Sites whose orders fold into the weights.

    Raises:
        UnsupportedModelError: for families whose folds are not known here.
    """
    layers = prunable_layers(model)
    known = _fold_of(model, layers)
    heads, shared = _heads(model)
    sites = []
    for index in range(model.config.get_text_config().num_hidden_layers):
        reader = f"{index}.{known.attention}"
        channels = torch.arange(layers[reader].columns).reshape(heads, -1)
        for head, copies in enumerate(channels.chunk(shared)):
            sites.append(Site(f"{reader}.{head}", (Member(reader, copies),)))
        reader = f"{index}.{known.outer}"
        sites.append(Site(reader, (_whole(reader, layers),)))
    readers = [name for name in layers if name.partition(".")[2] in known.residual]
    return [*sites, Site(RESIDUAL, tuple(_whole(name, layers) for name in readers))]


def assemble(sites: Sequence[Site], pieces: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Whole matrices from the columns that each site has of them.

    Args:
        sites: of one level.
        pieces: per site, (R, n) for each copy of each member, in their order.

    Returns:
        `<block>.<name>` -> (R, C), original order.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for site, parts in zip(sites, pieces, strict=True):
        places = [(member.layer, columns) for member in site.members for columns in member.columns]
        for (layer, columns), part in zip(places, parts, strict=True):
            found.setdefault(layer, []).append((columns, part))
    return {layer: _joined(held) for layer, held in found.items()}


def _joined(held: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    if len(held) == 1 and bool((held[0][0].diff() > 0).all()):
        return held[0][1]
    columns = torch.cat([one for one, _ in held])
    return torch.cat([one for _, one in held], dim=1)[:, columns.argsort()]


def layer_orders(
    sites: Sequence[Site], orders: Mapping[str, Tensor], widths: Mapping[str, int]
) -> dict[str, Tensor]:
    """The order of each layer's inputs, from those of its sites.

    Args:
        sites: of one level.
        orders: (n,) per site.
        widths: inputs of each layer.

    Returns:
        `<block>.<name>` -> (C,) int64; layers without a site keep their order.
    """
    found = {layer: torch.arange(width) for layer, width in widths.items()}
    for site in sites:
        for member in site.members:
            for columns in member.columns:
                found[member.layer][columns] = columns[orders[site.name]]
    return found


@torch.no_grad()
def fold(model: PreTrainedModel, orders: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Write `free` orders into the weights, in place: the model computes the same as before.

    Args:
        model: of a family that `free_sites` knows.
        orders: (n,) per site of `free_sites`.

    Returns:
        Orders of the rows and of the columns of each layer, `<block>.<name>`.

    Raises:
        UnsupportedModelError: for another family.
    """
    layers = prunable_layers(model)
    columns = layer_orders(
        free_sites(model), orders, {name: layer.columns for name, layer in layers.items()}
    )
    known = _fold_of(model, layers)
    heads, shared = _heads(model)
    moved = {}
    for name, layer in layers.items():
        index, _, kind = name.partition(".")
        rows = torch.arange(len(layer.read()), device=columns[name].device)
        if kind == known.value:
            # Each value head's rows, as its first reader has them, counted within value heads.
            read = columns[f"{index}.{known.attention}"].reshape(heads, -1)
            size = read.shape[1]
            within = read[:: heads // shared] % size
            start = len(rows) - shared * size
            rows[start:] = start + (within + rows[:shared, None] * size).reshape(-1)
        elif kind in known.inner:
            rows = columns[f"{index}.{known.outer}"]
        elif kind in (known.attention, known.outer):
            rows = orders[RESIDUAL]
        layer.write(layer.read()[rows][:, columns[name]])
        if layer.module.bias is not None:
            _reorder(layer.module.bias, rows)
        moved[name] = rows, columns[name]
    _order_residual(model, orders[RESIDUAL])
    return moved


def _order_residual(model: PreTrainedModel, order: Tensor) -> None:
    """Embeddings, norms, projections and output head: what else reads or writes the stream."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in _STATES:
            parameter.copy_(parameter[..., order])
    seen = set()  # tied tables are one
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        weight = getattr(module, "weight", None)
        if weight is None or id(weight) in seen:
            continue
        if kind in _TABLES:
            if weight.shape[1] == len(order):  # else a projection stands between
                seen.add(id(weight))
                weight.copy_(weight[:, order])
        elif kind in _MAKERS or (_is_norm(kind) and kind not in ("q_norm", "k_norm")):
            _reorder(weight, order)
            if getattr(module, "bias", None) is not None:
                _reorder(module.bias, order)


def _is_norm(module: str) -> bool:
    return "norm" in module or module.startswith("ln_")


def _reorder(rows: object, order: Tensor) -> None:
    assert isinstance(rows, Tensor)
    rows.copy_(rows[order])


def _whole(layer: str, layers: Mapping[str, LinearLayer]) -> Member:
    return Member(layer, torch.arange(layers[layer].columns)[None])


def _heads(model: PreTrainedModel) -> tuple[int, int]:
    """Query heads, and value heads."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    return heads, getattr(config, "num_key_value_heads", None) or heads


def _fold_of(model: PreTrainedModel, layers: Mapping[str, LinearLayer]) -> Fold:
    names = {name.partition(".")[2] for name in layers}
    found = next((fold for fold in FOLDS if fold.layers == names), None)
    foreign = [
        name
        for name, _ in decoder_blocks(model).named_parameters()
        if name.rpartition(".")[0] not in layers and not _is_norm(name.split(".")[-2])
    ]
    if found is None or foreign:
        raise UnsupportedModelError(
            f"{type(model).__name__}: folds are known for the layers of Llama, Mistral, Qwen, OPT, "
            f"GPT-2 and ViT, found {', '.join(foreign[:4] or sorted(names)[:4])}, …; search with "
            "level=gather"
        )
    return found
