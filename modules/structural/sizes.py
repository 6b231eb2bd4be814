"""What a model weighs, counted and not computed from its configuration."""

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from effllm.modules.modeling.blocks import decoder_blocks


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
