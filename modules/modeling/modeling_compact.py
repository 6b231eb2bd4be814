"""Decoders whose blocks have different numbers of heads and neurons.

This file travels with the checkpoints and needs nothing but torch and transformers. A compact model
is its stock model with smaller projections, described block by block in `config.compact_layers`:

* `heads`, `neurons`: what is left; 0 leaves the whole sub-layer out, and with it its input norm;
* `kv_heads`, `kv_index`: key-value heads, and which of them each head reads. Null: read as stock
  code does, in equal groups;
* `attention_bias`, `ffn_bias`: whether the output projection has a bias.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CompactLayers = list[dict[str, Any]] | None


class CompactLlamaConfig(LlamaConfig):
    """A Llama configuration with sizes per block."""

    model_type = "compact_llama"
    compact_layers: CompactLayers = None


class CompactMistralConfig(MistralConfig):
    """A Mistral configuration with sizes per block."""

    model_type = "compact_mistral"
    compact_layers: CompactLayers = None


class CompactQwen2Config(Qwen2Config):
    """A Qwen2 configuration with sizes per block."""

    model_type = "compact_qwen2"
    compact_layers: CompactLayers = None


class CompactQwen3Config(Qwen3Config):
    """A Qwen3 configuration with sizes per block."""

    model_type = "compact_qwen3"
    compact_layers: CompactLayers = None


class CompactOPTConfig(OPTConfig):
    """An OPT configuration with sizes per block."""

    model_type = "compact_opt"
    compact_layers: CompactLayers = None


class CompactLlamaForCausalLM(LlamaForCausalLM):
    """Llama with uneven blocks."""

    config_class = CompactLlamaConfig

    def __init__(self, config: CompactLlamaConfig) -> None:
        super().__init__(config)
        shrink(self, self.model.layers)


class CompactMistralForCausalLM(MistralForCausalLM):
    """Mistral with uneven blocks."""

    config_class = CompactMistralConfig

    def __init__(self, config: CompactMistralConfig) -> None:
        super().__init__(config)
        shrink(self, self.model.layers)


class CompactQwen2ForCausalLM(Qwen2ForCausalLM):
    """Qwen2 with uneven blocks."""

    config_class = CompactQwen2Config

    def __init__(self, config: CompactQwen2Config) -> None:
        super().__init__(config)
        shrink(self, self.model.layers)


class CompactQwen3ForCausalLM(Qwen3ForCausalLM):
    """Qwen3 with uneven blocks."""

    config_class = CompactQwen3Config

    def __init__(self, config: CompactQwen3Config) -> None:
        super().__init__(config)
        shrink(self, self.model.layers)


class CompactOPTForCausalLM(OPTForCausalLM):
    """OPT with uneven blocks."""

    config_class = CompactOPTConfig

    def __init__(self, config: CompactOPTConfig) -> None:
        super().__init__(config)
        shrink(self, self.model.decoder.layers)


class WithoutHeads(nn.Module):
    """Attention without heads: nothing, or a bias. Its cache entry is one number per token.

    Caches tell the length of the text by their entries, some by the first one alone. The class is
    not called an attention: transformers would then look for a call of its attention interface in
    this file, and refuse other attention functions for the whole model.
    """

    def __init__(self, layer_idx: int, hidden_size: int, bias: bool) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if bias else None

    def forward(
        self, hidden_states: Tensor, past_key_values: Any = None, **_: Any
    ) -> tuple[Tensor, None]:
        """(B, T, C) -> zeros or the bias, and no attention weights."""
        if past_key_values is not None:
            batch, length = hidden_states.shape[:2]
            mark = hidden_states.new_zeros(batch, 1, length, 1)
            past_key_values.update(mark, mark, self.layer_idx)
        return _nothing(hidden_states, self.bias), None


class WithoutNeurons(nn.Module):
    """A feed-forward network, or its last layer, without neurons: nothing, or a bias."""

    def __init__(self, hidden_size: int, bias: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if bias else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., C) -> zeros or the bias."""
        return _nothing(hidden_states, self.bias)


class _Readers:
    """A cache whose reader gets the key-value head of each query head instead of each once."""

    def __init__(self, cache: Any, index: Tensor) -> None:
        self.cache, self.index = cache, index

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Cache (B, Hkv, T, D) states; (B, H, S, D) of all states so far."""
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, layer_idx)
        return keys[:, self.index], values[:, self.index]


def shrink(model: PreTrainedModel, blocks: nn.ModuleList) -> None:
    """Give a stock model's blocks the sizes of `config.compact_layers`, in place."""
    sizes = model.config.compact_layers
    if sizes is None or len(sizes) != len(blocks):
        raise ValueError(f"compact_layers: expected sizes of {len(blocks)} blocks, found {sizes}")
    for index, (block, size) in enumerate(zip(blocks, sizes, strict=True)):
        _shrink_attention(model, block, size, index)
        _shrink_feed_forward(model, block, size)


def _shrink_attention(model: PreTrainedModel, block: Any, size: dict[str, Any], index: int) -> None:
    width, heads = model.config.hidden_size, int(size["heads"])
    attention, opt = block.self_attn, hasattr(block, "fc1")
    if not heads:
        block.self_attn = WithoutHeads(index, width, bool(size["attention_bias"]))
        if not opt:
            block.input_layernorm = nn.Identity()
        elif block.do_layer_norm_before:
            block.self_attn_layer_norm = nn.Identity()
        return
    kept, read = heads * attention.head_dim, int(size["kv_heads"]) * attention.head_dim
    attention.q_proj = nn.Linear(width, kept, bias=attention.q_proj.bias is not None)
    attention.k_proj = nn.Linear(width, read, bias=attention.k_proj.bias is not None)
    attention.v_proj = nn.Linear(width, read, bias=attention.v_proj.bias is not None)
    output = nn.Linear(kept, width, bias=bool(size["attention_bias"]))
    if opt:
        attention.num_heads, attention.out_proj = heads, output
    else:
        attention.num_key_value_groups, attention.o_proj = heads // int(size["kv_heads"]), output
    if size["kv_index"] is not None:
        attention.num_key_value_groups = 1
        attention.kv_index, attention.kv_index_reader = list(size["kv_index"]), None
        attention.register_forward_pre_hook(_read_shared, with_kwargs=True)


def _shrink_feed_forward(model: PreTrainedModel, block: Any, size: dict[str, Any]) -> None:
    width, neurons, bias = model.config.hidden_size, int(size["neurons"]), bool(size["ffn_bias"])
    if hasattr(block, "fc1"):
        if neurons:
            block.fc1 = nn.Linear(width, neurons, bias=block.fc1.bias is not None)
            block.fc2 = nn.Linear(neurons, width, bias=bias)
            return
        block.fc1, block.fc2 = nn.Identity(), WithoutNeurons(width, bias)
        if block.do_layer_norm_before:
            block.final_layer_norm = nn.Identity()
        return
    if neurons:
        mlp = block.mlp
        mlp.intermediate_size = neurons
        mlp.gate_proj = nn.Linear(width, neurons, bias=mlp.gate_proj.bias is not None)
        mlp.up_proj = nn.Linear(width, neurons, bias=mlp.up_proj.bias is not None)
        mlp.down_proj = nn.Linear(neurons, width, bias=bias)
        return
    block.mlp, block.post_attention_layernorm = WithoutNeurons(width, bias), nn.Identity()


def _read_shared(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let the stock attention read its key-value heads through `_Readers`.

    Not for an attention function that reads `kv_index` itself and is named in `kv_index_reader`.
    """
    if module.kv_index_reader == module.config._attn_implementation:
        return args, kwargs
    hidden = args[0] if args else kwargs["hidden_states"]
    index = torch.tensor(module.kv_index, device=hidden.device)
    return args, {**kwargs, "past_key_values": _Readers(kwargs.get("past_key_values"), index)}


def _nothing(hidden: Tensor, bias: Tensor | None) -> Tensor:
    return torch.zeros_like(hidden) if bias is None else bias.expand_as(hidden)
