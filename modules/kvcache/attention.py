"""Attention over a compressed cache, and the hooks that let it see the queries of the prompt.

transformers hands a cache keys and values but no queries, and an attention function queries but no
cache. `attached` gives every attention module a way to its layer of the cache for the time of a
pass, and one of three attention functions:

* `compressed_packed` reads states as their format can: packed keys as they are, others a block of
  tokens at a time, so that no layer is ever dense;
* `compressed_sdpa` and `compressed_eager` let the cache rebuild dense keys and attend as
  transformers does.

All three ignore the mask of the model once a prompt is compressed: layers may then hold different
tokens. Every stored token is visible but padding, and new tokens see each other causally. What an
attention needs beyond that (biases on positions, windows, soft caps, sinks) is refused by name
while the prompt is read, and so is a layer that no attention function reached.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from effllm.modules.errors import UnsupportedModelError
from effllm.modules.kvcache.cache import CompressedCache
from effllm.modules.kvcache.layer import CompressedLayer

Reading = Literal["packed", "sdpa", "eager"]

_LAYER = "_compressed_layer"  # attribute of an attention module, during its pass: with rotation
# Keyword arguments of an attention function that do not change what it computes here.
_HARMLESS = {"cache_position", "dropout", "is_causal", "output_attentions", "position_ids"}
_HARMLESS |= {"output_hidden_states", "output_router_logits", "return_dict", "use_cache"}
_OF_EAGER = {"s_aux", "softcap"}  # the model's own function heeds them


@contextmanager
def attached(model: PreTrainedModel, reading: Reading = "packed") -> Iterator[None]:
    """Let a model fill and read a `CompressedCache`; undone on leaving.

    Args:
        model: any causal model that uses transformers' attention functions.
        reading: how compressed keys are read; see above. Other caches work as before.

    Raises:
        UnsupportedModelError: if the model has attention of its own, or one that sdpa cannot serve;
            by a pass inside, for what only shows there.
    """
    name = type(model).__name__
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{name}: its attention does not go through transformers' attention functions, so it "
            "cannot read a compressed cache"
        )
    if reading != "eager" and not model._supports_sdpa:
        raise UnsupportedModelError(
            f"{name}: its attention is none that sdpa computes (soft caps or sinks); take "
            'reading="eager"'
        )
    before = model.config._attn_implementation
    modules = [
        module
        for module in model.modules()
        if "Attention" in type(module).__name__ and hasattr(module, "layer_idx")
    ]
    find = partial(_find_layer, reading == "packed")
    handles = [one.register_forward_pre_hook(find, with_kwargs=True) for one in modules]
    handles.append(model.register_forward_hook(_refuse_missed, with_kwargs=True))
    model.set_attn_implementation(f"compressed_{reading}")
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in modules:
            module.__dict__.pop(_LAYER, None)
        model.set_attn_implementation(before)


def _find_layer(direct: bool, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    given = [kwargs.get(name) for name in ("past_key_values", "layer_past")]
    cache = next((one for one in given if isinstance(one, CompressedCache)), None)
    layer = None if cache is None else cache.layers[module.layer_idx]
    if isinstance(layer, CompressedLayer):
        rotation = kwargs.get("position_embeddings")
        layer.direct = direct
        setattr(module, _LAYER, (layer, rotation if isinstance(rotation, tuple) else None))


def _refuse_missed(model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """After a pass: every layer that can be compressed was seen by an attention function."""
    cache = kwargs.get("past_key_values")
    if isinstance(cache, CompressedCache):
        missed = [
            one.layer for one in cache.compressible if one.past is None and one.queries is None
        ]
        if missed:
            raise UnsupportedModelError(
                f"{type(model).__name__}: {len(missed)} layers, the first of them {missed[0]}, did "
                "not reach transformers' attention functions with their cache; nothing would be "
                "compressed there"
            )


def _refuse_foreign(
    kind: Reading, module: nn.Module, layer: CompressedLayer | None, given: dict[str, Any]
) -> None:
    """Refuse arguments of an attention function that change what it computes."""
    known = _HARMLESS | (_OF_EAGER if kind == "eager" else set())
    if layer is None:  # as in transformers: the mask has the window
        known = known | {"sliding_window", "position_bias"}
    foreign = [name for name, one in given.items() if one is not None and name not in known]
    if foreign:
        raise UnsupportedModelError(
            f"{type(module).__name__}: a compressed cache does not know what to make of "
            f"{', '.join(foreign)}"
        )


def _refuse_mask(module: nn.Module, mask: Tensor | None) -> None:
    """Refuse a mask of a prompt that is more than causal with padding."""
    if mask is None:
        return
    shown = mask if mask.dtype == torch.bool else mask == 0
    last, own = shown[:, :, -1], shown.diagonal(mask.shape[-1] - mask.shape[-2], -2, -1)
    hidden = own & ~last[..., -own.shape[-1] :]
    biased = mask.dtype != torch.bool and bool(
        ((mask[:, :, -1] > torch.finfo(mask.dtype).min / 2) & ~last).any()
    )
    if biased or bool(hidden.any()) or bool((last != last[:, :1]).any()):
        raise UnsupportedModelError(
            f"{type(module).__name__}: its mask {'adds a bias' if biased else 'hides tokens'}; "
            "a compressed cache does not keep that"
        )


def _attend(kind: Reading) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        layer, rotation = module.__dict__.pop(_LAYER, (None, None))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        _refuse_foreign(kind, module, layer, kwargs)
        if layer is not None:
            layer.direct = False
            if layer.past is None:
                _refuse_mask(module, attention_mask)
            if kind == "packed" and not layer.gave(key, value):
                raise UnsupportedModelError(
                    f"{type(module).__name__}: it changes keys or values after they were cached; "
                    'take reading="sdpa"'
                )
            if layer.past is not None and kind == "packed":
                return packed_attention(layer, query, scale), None
            if layer.past is not None:
                attention_mask = _own_mask(layer, query)
                if kind == "eager" and attention_mask is not None:
                    hidden = torch.finfo(query.dtype).min
                    attention_mask = torch.zeros_like(
                        attention_mask, dtype=query.dtype
                    ).masked_fill(~attention_mask, hidden)
        dense: Callable[..., Any] = sdpa_attention_forward
        if kind == "eager":
            dense = sys.modules[type(module).__module__].eager_attention_forward
        attended = dense(module, query, key, value, attention_mask, scaling=scale, **kwargs)
        if layer is not None and layer.past is None:
            layer.observe(query, scale, _valid(attention_mask), rotation)
        return attended[0], attended[1]

    return attend


def packed_attention(layer: CompressedLayer, query: Tensor, scaling: float) -> Tensor:
    """Attention of new tokens over a compressed layer, a block of its tokens at a time.

    Args:
        layer: holds the new tokens' states already.
        query: (B, H, n, D).
        scaling: factor of the scores.

    Returns:
        (B, n, H, D) in the dtype of the query; sums are float32.
    """
    assert layer.past is not None
    batch, heads, new, channels = query.shape
    keys, values = layer.tail(torch.float32)
    own = keys.shape[1]
    grouped = (query.float() * scaling).reshape(batch, own, -1, channels)  # (B, Hkv, G n, D)
    tail = grouped @ keys.mT
    tail = tail.reshape(batch, own, -1, new, layer.held)
    tail = tail.masked_fill(~_tail_mask(layer, new).unsqueeze(2), -math.inf)
    scores = layer.method.keys.scores(layer.past[0], grouped)
    if layer.past_valid is not None:
        scores = scores.masked_fill(~layer.past_valid.unsqueeze(2), -math.inf)
    weights = torch.cat([tail.flatten(2, 3), scores], dim=-1).softmax(dim=-1).nan_to_num(0.0)
    past = layer.method.values.mixture(layer.past[1], weights[..., layer.held :])
    mixed = weights[..., : layer.held] @ values + past
    return mixed.reshape(batch, heads, new, -1).transpose(1, 2).to(query.dtype).contiguous()


def _tail_mask(layer: CompressedLayer, new: int) -> Tensor:
    """(B or 1, Hkv or 1, n, held) bool: which dense tokens each new token sees."""
    assert layer.keys is not None
    place = torch.arange(layer.held, device=layer.keys.device)
    seen = place <= place[layer.held - new :].unsqueeze(1)
    valid = layer.valid_of_tail()
    shown = seen.expand(1, 1, -1, -1)
    return shown if valid is None else shown & valid.unsqueeze(2)


def _own_mask(layer: CompressedLayer, query: Tensor) -> Tensor | None:
    """(B, H or 1, n, past + held) bool for attention over rebuilt states; None if all is seen."""
    assert layer.past is not None
    new = query.shape[2]
    if new == 1 and layer.past_valid is None and layer.held_valid is None:
        return None
    tail = _tail_mask(layer, new)
    past = tail.new_ones(*tail.shape[:2], new, layer.past[0].tokens)
    if layer.past_valid is not None:
        past = past & layer.past_valid.unsqueeze(2)
    mask = torch.cat([past, tail.expand(*past.shape[:2], -1, -1)], dim=-1)
    if mask.shape[1] > 1:
        mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
    return mask.expand(query.shape[0], -1, -1, -1)


def _valid(mask: Tensor | None) -> Tensor | None:
    """(B, S) bool of the tokens that the last position sees; None if it sees all."""
    if mask is None:
        return None
    last = mask[:, 0, -1]
    shown = last if last.dtype == torch.bool else last == 0
    return None if bool(shown.all()) else shown


_MASKS: dict[Reading, Callable[..., Any]] = {
    "packed": sdpa_mask,
    "sdpa": sdpa_mask,
    "eager": eager_mask,
}
for _kind, _mask in _MASKS.items():
    AttentionInterface.register(f"compressed_{_kind}", _attend(_kind))
    AttentionMaskInterface.register(f"compressed_{_kind}", _mask)
