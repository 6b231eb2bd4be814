"""From a dense model and what is kept of it to a smaller model that loads and runs on its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effllm.modules.errors import ConfigError, UnsupportedModelError
from effllm.modules.modeling import modeling_compact
from effllm.modules.modeling.blocks import decoder_blocks
from effllm.modules.structural.units import (
    Kept,
    SubLayer,
    attention_shape,
    key_matrix,
    padded,
    parts_of,
)

_CODE = modeling_compact.__name__.rpartition(".")[2]  # the file travels with the checkpoint
_FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3",
             "opt": "OPT"}  # fmt: skip


def install(model: PreTrainedModel, sublayer: SubLayer, kept: Kept) -> None:
    """Write a key matrix with zeros for removed units into the dense model, in place."""
    layer = key_matrix(model, sublayer)
    layer.write(padded(sublayer, kept))
    if kept.bias is not None:
        module: Any = layer.module
        old = 0 if module.bias is None else module.bias.data
        module.bias = torch.nn.Parameter((old + kept.bias).to(module.weight.dtype))


def compact_family(model: PreTrainedModel) -> str:
    """Name of a model's family in `modeling_compact`.

    Raises:
        UnsupportedModelError: for families without a compact form.
    """
    family = _FAMILIES.get(model.config.model_type)
    if family is None:
        raise UnsupportedModelError(
            f"{model.config.model_type}: no compact form; there is one for {', '.join(_FAMILIES)}"
        )
    return family


@torch.no_grad()
def compact_model(
    model: PreTrainedModel, layers: Sequence[SubLayer], kept: Mapping[str, Kept]
) -> PreTrainedModel:
    """A model without the removed units: the same logits as the dense one with zeros.

    Args:
        model: the dense model; only its key matrices may have been changed.
        layers: its sub-layers.
        kept: what is left of each, by sub-layer name.

    Returns:
        A new model of a class of `modeling_compact`, in the dtype and on the device of `model`.

    Raises:
        UnsupportedModelError: for families without a compact form.
    """
    family = compact_family(model)
    sizes, state = _slices(model, layers, kept)
    values = model.config.to_dict()
    for key in ("model_type", "architectures", "dtype", "transformers_version", "auto_map"):
        values.pop(key, None)
    config = getattr(modeling_compact, f"Compact{family}Config")(**values, compact_layers=sizes)
    config.auto_map = {
        "AutoConfig": f"{_CODE}.Compact{family}Config",
        "AutoModelForCausalLM": f"{_CODE}.Compact{family}ForCausalLM",
    }
    cls = getattr(modeling_compact, f"Compact{family}ForCausalLM")
    return _filled(cls._from_config(config, dtype=model.dtype), state, model)


@torch.no_grad()
def stock_model(
    model: PreTrainedModel, layers: Sequence[SubLayer], kept: Mapping[str, Kept]
) -> PreTrainedModel:
    """As `compact_model`, of the dense model's own class: for equal blocks only.

    Raises:
        ConfigError: if blocks differ, heads are read unevenly, or the class cannot say the sizes.
    """
    sizes, state = _slices(model, layers, kept)
    first = sizes[0]
    uneven = [index for index, one in enumerate(sizes) if one != first]
    if uneven or first["kv_index"] is not None or not first["heads"] or not first["neurons"]:
        raise ConfigError(
            "layout stock: needs equal blocks with whole key-value groups, but block "
            f"{uneven[0] if uneven else 0} has {sizes[uneven[0] if uneven else 0]}; use "
            "attention_unit=kv_group with a sparsity that divides evenly, or layout=compact"
        )
    values = model.config.to_dict()
    head_size = attention_shape(decoder_blocks(model)[0])[2]
    if model.config.model_type == "opt":
        if first["heads"] * head_size != model.config.hidden_size:
            raise ConfigError("layout stock: OPT cannot have fewer heads; use layout=compact")
        values["ffn_dim"] = first["neurons"]
    else:
        values |= {
            "num_attention_heads": first["heads"],
            "num_key_value_heads": first["kv_heads"],
            "head_dim": head_size,
            "intermediate_size": first["neurons"],
        }
    try:
        config = type(model.config).from_dict(values)
        smaller = type(model)._from_config(config, dtype=model.dtype)
    except ValueError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"layout stock: transformers refuses the sizes: {reason}") from error
    return _filled(smaller, state, model)


def _filled(
    smaller: PreTrainedModel, state: dict[str, Tensor], model: PreTrainedModel
) -> PreTrainedModel:
    """The smaller model with the dense one's weights, dtype, device and generation settings."""
    own = smaller.state_dict()
    smaller.load_state_dict({name: state[name] for name in own})
    smaller.generation_config = model.generation_config
    smaller.to(model.device)  # type: ignore[arg-type] # its wrapper hides the method
    return smaller.eval()


def _slices(
    model: PreTrainedModel, layers: Sequence[SubLayer], kept: Mapping[str, Kept]
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Sizes of each block, and the state of the smaller model (and some entries it lacks)."""
    missing = [one.name for one in layers if one.name not in kept]
    if missing:
        raise ConfigError(f"nothing is known of sub-layer {missing[0]}; cannot export it")
    blocks = decoder_blocks(model)
    prefix = next(name for name, one in model.named_modules() if one is blocks)
    state = dict(model.state_dict())
    sizes: list[dict[str, Any]] = [{} for _ in blocks]
    for layer in layers:
        block, one, where = blocks[layer.block], kept[layer.name], f"{prefix}.{layer.block}"
        parts = parts_of(block)
        output = parts["o" if layer.kind == "attention" else "down"]
        if layer.kind == "attention":
            sizes[layer.block] |= _slice_attention(state, where, block, layer, one)
        else:
            sizes[layer.block]["neurons"] = len(one.units)
            for name in ("gate", "up"):
                if name in parts:
                    _take_rows(state, f"{where}.{parts[name]}", one.units)
        state[f"{where}.{output}.weight"] = one.weight.to(model.dtype)
        bias = state.get(f"{where}.{output}.bias")
        if one.bias is not None:
            extra = one.bias.to(model.dtype)
            bias = extra if bias is None else bias + extra
        sizes[layer.block][f"{layer.kind}_bias"] = bias is not None
        if bias is not None:
            state[f"{where}.{output}.bias"] = bias
            # Where nothing else is left, the sub-layer is its bias.
            state[f"{where}.{'fc2' if output == 'fc2' else output.split('.')[0]}.bias"] = bias
    return sizes, state


def _slice_attention(
    state: dict[str, Tensor], where: str, block: Any, layer: SubLayer, kept: Kept
) -> dict[str, Any]:
    """Slice q, k and v in place; `heads`, `kv_heads` and `kv_index`."""
    parts = parts_of(block)
    heads, kv_heads, size = attention_shape(block)
    queries = [int(unit) * layer.heads + i for unit in kept.units for i in range(layer.heads)]
    readers = [head // (heads // kv_heads) for head in queries]
    used = sorted(set(readers))
    rows = torch.arange(size)
    for name, chosen in (("q", queries), ("k", used), ("v", used)):
        taken = (torch.tensor(chosen, dtype=torch.long)[:, None] * size + rows).reshape(-1)
        _take_rows(state, f"{where}.{parts[name]}", taken)
    index = [used.index(one) for one in readers]
    each = len(queries) // len(used) if used else 1
    even = index == [place // each for place in range(len(queries))]
    return {"heads": len(queries), "kv_heads": len(used), "kv_index": None if even else index}


def _take_rows(state: dict[str, Tensor], layer: str, rows: Tensor) -> None:
    for name in (f"{layer}.weight", f"{layer}.bias"):
        if name in state:
            state[name] = state[name][rows.to(state[name].device)]
