"""What a model weighs, counted and not computed from its configuration; what a sub-layer would."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from effllm.modules.modeling.blocks import decoder_blocks
from effllm.modules.structural.units import SubLayer, attention_shape, parts_of


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters in all, tied ones once, and inside the decoder blocks."""
    blocks = decoder_blocks(model)
    return (
        sum(one.numel() for one in model.parameters()),
        sum(one.numel() for one in blocks.parameters()),
    )


@torch.no_grad()
def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes that the key-value cache grows by with every token, measured on a few tokens."""
    tokens = torch.ones(1, 4, dtype=torch.long, device=model.device)
    cache = DynamicCache()
    model(input_ids=tokens, past_key_values=cache, use_cache=True)
    held = 0
    layers: list[Any] = list(cache.layers)  # transformers' union has kinds without states
    for layer in layers:
        for states in (layer.keys, layer.values):
            assert isinstance(states, torch.Tensor)
            held += states.numel() * states.element_size()
    return held // tokens.numel()


@dataclass(frozen=True)
class SubLayerSize:
    """A sub-layer with some of its units.

    Attributes:
        parameters: numbers that it has and could lose, weights, biases and norms.
        cached: channels per cached token, of keys or of values.
        width: channels of the model.
        inner: channels between its matrices.
        matrices: of this size.
    """

    parameters: int
    cached: int
    width: int
    inner: int
    matrices: int


def sublayer_size(block: Any, layer: SubLayer, units: Tensor) -> SubLayerSize:
    """Size of a sub-layer of a whole block with (k,) units; keys go that no unit reads."""
    parts = parts_of(block)
    width = int(block.get_submodule(layer.key).weight.shape[0])
    if layer.kind == "ffn":
        inner, cached = len(units) * layer.size, 0
        rows: dict[str, int] = {name: inner for name in ("gate", "up") if name in parts}
    else:
        heads, kv_heads, size = attention_shape(block)
        read = {int(unit) * layer.heads // (heads // kv_heads) for unit in units}
        inner, cached = len(units) * layer.size, len(read) * size
        rows = {"q": inner, "k": cached, "v": cached}
    parameters = inner * width  # the key matrix
    for name, count in rows.items():
        parameters += count * (width + (block.get_submodule(parts[name]).bias is not None))
    if len(units):
        parameters += sum(one.numel() for one in _norms(block, layer))
    return SubLayerSize(parameters, cached, width, inner, 2 if "q" in rows else 1 + len(rows))


def _norms(block: Any, layer: SubLayer) -> list[Tensor]:
    """Parameters of norms that an empty sub-layer leaves out, as `modeling_compact` does."""
    attention = layer.kind == "attention"
    if hasattr(block, "fc1"):
        norm = block.self_attn_layer_norm if attention else block.final_layer_norm
        return list(norm.parameters()) if block.do_layer_norm_before else []
    norms = [block.input_layernorm if attention else block.post_attention_layernorm]
    if attention:
        norms += [
            getattr(block.self_attn, n) for n in ("q_norm", "k_norm") if hasattr(block.self_attn, n)
        ]
    return [value for norm in norms for value in norm.parameters()]
