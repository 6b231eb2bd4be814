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
from effllm.modules.modeling.blocks import prunable_layers

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


def free_sites(model: PreTrainedModel) -> list[Site]:
    """Sites whose orders fold into the weights.

    Raises:
        UnsupportedModelError: for families whose folds are not known here.
    """
    layers = prunable_layers(model)
    _require_llama_like(model, layers)
    config = model.config.get_text_config()
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    sites = []
    for index in range(config.num_hidden_layers):
        for head in range(shared):
            readers = torch.arange(head * heads // shared, (head + 1) * heads // shared)
            columns = readers[:, None] * size + torch.arange(size)
            member = Member(f"{index}.self_attn.o_proj", columns)
            sites.append(Site(f"{member.layer}.{head}", (member,)))
        down = f"{index}.mlp.down_proj"
        sites.append(Site(down, (Member(down, torch.arange(layers[down].columns)[None]),)))
    residual = torch.arange(config.hidden_size)[None]
    readers_of = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj",
                  "mlp.up_proj")  # fmt: skip
    members = tuple(
        Member(f"{index}.{name}", residual)
        for index in range(config.num_hidden_layers)
        for name in readers_of
    )
    return [*sites, Site(RESIDUAL, members)]


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
    config = model.config.get_text_config()
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    moved = {}
    for name, layer in layers.items():
        index, _, kind = name.partition(".")
        if kind == "self_attn.v_proj":
            # Each value head's rows, as its first reader has them, counted within value heads.
            read = columns[f"{index}.self_attn.o_proj"].reshape(heads, -1)
            size = read.shape[1]
            first = torch.arange(shared, device=read.device)[:, None] * size
            rows = (read[:: heads // shared] % size + first).reshape(-1)
        elif kind in ("mlp.gate_proj", "mlp.up_proj"):
            rows = columns[f"{index}.mlp.down_proj"]
        elif kind in ("self_attn.o_proj", "mlp.down_proj"):
            rows = orders[RESIDUAL]
        else:
            rows = torch.arange(len(layer.read()))
        layer.write(layer.read()[rows][:, columns[name]])
        if layer.module.bias is not None:
            _reorder(layer.module.bias, rows)
        moved[name] = rows, columns[name]
    _order_residual(model, orders[RESIDUAL])
    return moved


def _order_residual(model: PreTrainedModel, order: Tensor) -> None:
    """Embedding, norms and output head: what else reads or writes the residual stream."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = {id(one.weight): one.weight for one in (embedding, head) if one is not None}
    for table in tables.values():
        assert isinstance(table, Tensor)
        table.copy_(table[:, order])
    for name, module in model.named_modules():
        if "norm" in name.rpartition(".")[2] and not name.endswith(("q_norm", "k_norm")):
            _reorder(module.weight, order)


def _reorder(rows: object, order: Tensor) -> None:
    assert isinstance(rows, Tensor)
    rows.copy_(rows[order])


def _require_llama_like(model: PreTrainedModel, layers: Mapping[str, object]) -> None:
    names = {name.partition(".")[2] for name in layers}
    known = {f"self_attn.{part}_proj" for part in "qkvo"}
    known |= {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    if names != known:
        raise UnsupportedModelError(
            f"{type(model).__name__}: folds are known for the layers of Llama, Mistral and Qwen, "
            f"found {', '.join(sorted(names)[:4])}, …; search with level=gather"
        )
