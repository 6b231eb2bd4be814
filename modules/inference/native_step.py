"""Passes of a Llama-shaped model over a few tokens as one call of compiled code.

The source is `kernels/decode_step.cpp`; its argument types are mirrored here. Weights are packed
once, beside the originals, which the model keeps for everything else.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from effllm.kernels.native import load_library
from effllm.modules.inference.cache import SlotCache

_LANES = 16
_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
_LEAVES = {"Linear", "PackedLinear", "Embedding", "SiLUActivation"}
_LEAVES |= {"Identity", "WithoutHeads", "WithoutNeurons"}  # of compact models
_STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn")


class _Product(ctypes.Structure):
    _fields_ = (("packed", c_void_p), ("bias", c_void_p), ("blocks", c_int32), ("words", c_int32))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("ffn_norm", c_void_p),
        ("qkv", _Product),
        ("output", _Product),
        ("gate_up", _Product),
        ("down", _Product),
        ("first_reader", c_void_p),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("window", c_int32),
        ("unused", c_int32),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("capacity", c_int64),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", POINTER(_Layer)),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("head", _Product),
        ("layer_count", c_int32),
        ("hidden", c_int32),
        ("head_size", c_int32),
        ("columns", c_int32),
        ("epsilon", c_float),
        ("scale", c_float),
        ("threads", c_int32),
        ("unused", c_int32),
    )


class _Pass(ctypes.Structure):
    _fields_ = (
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("seen", c_void_p),
        ("logits", c_void_p),
        ("states", c_void_p),
        ("start", c_int64),
        ("count", c_int32),
        ("rows", c_int32),
    )


class UnsuitedModelError(Exception):
    """Why compiled steps cannot serve a model."""


class NativeSteps:
    """Compiled passes of one model.

    Args:
        model: its weights are copied, packed; later changes of them are not seen.

    Raises:
        UnsuitedModelError: if the model is none that the compiled code knows.
        NoCompilerError: if the code cannot be compiled here.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        refuse_unsuited(model)
        library = load_library("decode_step.cpp")
        kind = str(model.dtype).removeprefix("torch.")
        self._step, self._keep_slots = library[f"step_{kind}"], library[f"keep_{kind}"]
        self._step.restype = self._keep_slots.restype = None
        self._keep_slots.argtypes = [c_void_p, c_void_p, c_int32, c_int64]
        self._dtype = model.dtype
        self._kept: list[Tensor] = []  # what the structures point at
        config: Any = model.config
        decoder: Any = model.model
        self._rotation = decoder.rotary_emb
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        window = config.sliding_window if "Mistral" in type(model).__name__ else None
        layers = [self._layer(block, size, window) for block in decoder.layers]
        self._layers = (_Layer * len(layers))(*layers)
        head: Any = model.get_output_embeddings()
        head = getattr(head, "rows", head)  # a reduced one
        self._arguments = _Model(
            layers=self._layers,
            embedding=self._keep(decoder.embed_tokens.weight.detach()),
            norm=self._keep_float(decoder.norm.weight),
            head=self._product([head.weight], [head.bias]),
            layer_count=len(layers),
            hidden=config.hidden_size,
            head_size=size,
            columns=head.weight.shape[0],
            epsilon=config.rms_norm_eps,
            scale=size**-0.5,
        )
        self._positions = 0
        self._cache: SlotCache | None = None
        self._capacity = 0

    def advance(
        self,
        tokens: Sequence[int],
        cache: SlotCache,
        start: int,
        *,
        rows: int,
        depths: Sequence[int],
        seen: Tensor,
        states: Tensor | None = None,
    ) -> Tensor:
        """One pass; the states of the new tokens are appended to the cache.

        Args:
            tokens: n token ids.
            cache: covers `start` tokens.
            start: cached tokens.
            rows: logits wanted, counted from the last token.
            depths: position of each token, counted from `start`.
            seen: (n, n) bool, whether a new token sees another; contiguous.
            states: (n, C) of the model's dtype, filled with the states that the head reads.

        Returns:
            (rows, V) float32.
        """
        count = len(tokens)
        self._grow_tables(start + count)
        self._point_at(cache, start + count)
        ids, positions = (c_int64 * count)(*tokens), (c_int64 * count)(*(start + x for x in depths))
        logits = torch.empty(rows, self._arguments.columns)
        work = _Pass(
            tokens=ctypes.addressof(ids),
            positions=ctypes.addressof(positions),
            seen=seen.data_ptr(),
            logits=logits.data_ptr(),
            states=None if states is None else states.data_ptr(),
            start=start,
            count=count,
            rows=rows,
        )
        self._arguments.threads = torch.get_num_threads()
        self._step(ctypes.byref(self._arguments), ctypes.byref(work))
        for slot in cache.slots:
            slot.length = start + count
        return logits

    def keep(self, cache: SlotCache, start: int, slots: Sequence[int]) -> None:
        """As `SlotCache.keep_slots`, in one call."""
        self._point_at(cache, start + len(slots))
        wanted = (c_int64 * len(slots))(*slots)
        self._keep_slots(ctypes.byref(self._arguments), wanted, len(slots), start)
        cache.rollback_to(start + len(slots))

    def _point_at(self, cache: SlotCache, length: int) -> None:
        """Make room for `length` tokens, and tell the structures where the cache is."""
        if cache is self._cache and length <= self._capacity:
            return
        for layer, slot in zip(self._layers, cache.slots, strict=True):
            # A block without heads has one number per token, as in the model itself.
            heads, size = (layer.kv_heads, self._arguments.head_size) if layer.heads else (1, 1)
            keys, values = slot.reserve(length, heads, size, self._dtype)
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
            layer.capacity = keys.shape[2]
        self._cache, self._capacity = cache, min(layer.capacity for layer in self._layers)

    def _grow_tables(self, positions: int) -> None:
        """Tables of the rotation for at least so many positions, as the model computes them."""
        if positions <= self._positions:
            return
        self._positions = max(positions, 2 * self._positions, 1024)
        like = torch.empty(0, dtype=self._dtype)
        cosines, sines = self._rotation(like, torch.arange(self._positions)[None])
        self._tables = cosines[0].float().contiguous(), sines[0].float().contiguous()
        self._arguments.cosines, self._arguments.sines = (x.data_ptr() for x in self._tables)

    def _layer(self, block: Any, size: int, window: int | None) -> _Layer:
        layer = _Layer()
        attention, mlp = block.self_attn, block.mlp
        if hasattr(attention, "q_proj"):
            query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
            heads, kv_heads = query.out_features // size, key.out_features // size
            index = getattr(attention, "kv_index", None)
            reads = index or [head * kv_heads // heads for head in range(heads)]
            order = sorted(range(heads), key=lambda head: reads[head])
            columns = torch.tensor([head * size + i for head in order for i in range(size)])
            bias = None if query.bias is None else query.bias[columns]
            layer.qkv = self._product(
                [query.weight[columns], key.weight, value.weight], [bias, key.bias, value.bias]
            )
            output = attention.o_proj
            layer.output = self._product([output.weight[:, columns]], [output.bias])
            ends = [sum(one < kv for one in reads) for kv in range(kv_heads + 1)]
            layer.first_reader = self._keep(torch.tensor(ends, dtype=torch.int32))
            layer.heads, layer.kv_heads = heads, kv_heads
            layer.window = getattr(attention, "sliding_window", window) or 0
            layer.attention_norm = self._keep_float(block.input_layernorm.weight)
            if hasattr(attention, "q_norm"):
                layer.query_norm = self._keep_float(attention.q_norm.weight)
                layer.key_norm = self._keep_float(attention.k_norm.weight)
        if hasattr(mlp, "gate_proj"):
            layer.gate_up = self._product_in_turn(mlp.gate_proj, mlp.up_proj)
            layer.down = self._product([mlp.down_proj.weight], [mlp.down_proj.bias])
            layer.ffn_norm = self._keep_float(block.post_attention_layernorm.weight)
        return layer

    def _product_in_turn(self, gate: nn.Linear, up: nn.Linear) -> _Product:
        """Blocks of both layers in turn; a missing bias is filled with zeros."""
        weights = [_blocks_of_rows(one.weight.detach()) for one in (gate, up)]
        weight = torch.stack(weights, dim=1).flatten(0, 2)
        bias = None
        if gate.bias is not None:
            biases = [_blocks_of_rows(one.bias.detach()[:, None]) for one in (gate, up)]
            bias = torch.stack(biases, dim=1).flatten()
        return self._product([weight], [bias])

    def _product(self, weights: list[Tensor], biases: list[Tensor | None]) -> _Product:
        """The stacked rows of some weights (R, C), packed."""
        packed = pack_rows(torch.cat([one.detach() for one in weights]))
        product = _Product(packed=self._keep(packed), blocks=packed.shape[0], words=packed.shape[1])
        if any(one is not None for one in biases):
            rows = [
                weight.new_zeros(len(weight)) if one is None else one.detach()
                for weight, one in zip(weights, biases, strict=True)
            ]
            bias = torch.cat(rows).float()
            product.bias = self._keep(F.pad(bias, (0, -len(bias) % _LANES)))
        return product

    def _keep_float(self, tensor: Tensor) -> int:
        return self._keep(tensor.detach().float())

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def pack_rows(weight: Tensor) -> Tensor:
    """(R, C) float32 or bfloat16 -> (R / 16, words, 16, numbers of a word), padded with zeros.

    A word is one float32, or two neighbouring bfloat16. Columns are padded to whole blocks too,
    since what is multiplied may come in blocks.
    """
    numbers = 4 // weight.element_size()
    padded = F.pad(weight, (0, -weight.shape[1] % _LANES, 0, -weight.shape[0] % _LANES))
    rows, columns = padded.shape
    words = padded.view(rows // _LANES, _LANES, columns // numbers, numbers)
    return words.transpose(1, 2).contiguous()


def _blocks_of_rows(weight: Tensor) -> Tensor:
    padded = F.pad(weight, (0, 0, 0, -weight.shape[0] % _LANES))
    return padded.view(-1, _LANES, padded.shape[1])


def refuse_unsuited(model: PreTrainedModel) -> None:
    """Raise for models that the compiled code does not know.

    Raises:
        UnsuitedModelError: with the reason.
    """
    name = type(model).__name__
    family = name.removeprefix("Compact").removesuffix("ForCausalLM")
    config: Any = model.config
    if family not in _FAMILIES:
        raise UnsuitedModelError(f"{name} is none of {', '.join(_FAMILIES)}")
    if model.device.type != "cpu":
        raise UnsuitedModelError(f"the model is on {model.device}, not on the CPU")
    if model.dtype not in (torch.float32, torch.bfloat16):
        raise UnsuitedModelError(f"no compiled code for {model.dtype}")
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in _STATIC_ROTATIONS:
        raise UnsuitedModelError(f"its {rotation} rotation depends on the length of the text")
    if config.hidden_act != "silu":
        raise UnsuitedModelError(f"its activation is {config.hidden_act}, not silu")
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if size % _LANES or config.hidden_size % _LANES:
        raise UnsuitedModelError(
            f"hidden size {config.hidden_size} and head size {size} are no multiples of {_LANES}"
        )
    leaves = {type(one).__name__ for one in model.modules() if not list(one.children())}
    strange = {one for one in leaves - _LEAVES if not one.endswith(("RMSNorm", "RotaryEmbedding"))}
    if strange:
        raise UnsuitedModelError(f"it has layers of type {', '.join(sorted(strange))}")
    if any(name.endswith(("self_attn.bias", "mlp.bias")) for name, _ in model.named_parameters()):
        raise UnsuitedModelError("a block without heads or neurons has a bias")
