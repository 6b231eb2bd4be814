"""Staged Adaptation layers: causal blocks of the target's own family over its last hidden states.

    u_t = fc1([h_t ; norm(E x_{t+1})]),   s1 = Block1(u),
    v_t = fc2([s1_t ; norm(E x_{t+1})]),  s2 = Block2(v)

The first half of the heads reads s1, the rest s2: far tokens need more adaptation.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.cache_utils import Cache

from effllm.modules.errors import UnsupportedModelError
from effllm.modules.heads.drafter import TokenReader
from effllm.modules.modeling.blocks import decoder_blocks


class StagedAdaptation(nn.Module):
    """One or more causal blocks, each behind a map of features and token.

    Args:
        config: of the target; blocks are of its family and sizes, and see all of the text.
        layers: blocks.
        reads_token: read the token after each position too.
        identity_start: features are the hidden states at the start.

    Raises:
        UnsupportedModelError: for targets without rotary positions.

    Source: Amphista (arXiv:2406.13170), Staged Adaptation layers; the formulas are ours, the
        paper's text was not available.
    """

    def __init__(
        self, config: PretrainedConfig, layers: int, *, reads_token: bool, identity_start: bool
    ) -> None:
        super().__init__()
        model = _small_model(config, layers)
        self.blocks = decoder_blocks(model)
        self.rotation: Any = model.model.rotary_emb
        self.readers = nn.ModuleList(
            TokenReader(config.hidden_size, identity_start=identity_start)
            for _ in range(layers if reads_token else 0)
        )
        if identity_start:
            for block in self.blocks:
                _end_in_zero(block)

    def forward(self, hidden: Tensor, embedded: Tensor, cache: Cache | None = None) -> Tensor:
        """Features of every stage.

        Args:
            hidden: (B, T, C) states.
            embedded: (B, T, C) embeddings of the token after each position.
            cache: of the positions before these, one layer per block; grows by T.

        Returns:
            (B, T, layers, C).
        """
        count = hidden.shape[1]
        start = 0 if cache is None else cache.get_seq_length()
        places = torch.arange(start, start + count, device=hidden.device)[None]
        turned = self.rotation(hidden, places)
        mask = None
        if start and count > 1:  # else the kernel's own causal mask, or none, is right
            seen = torch.arange(start + count, device=hidden.device)
            mask = (seen <= places[0, :, None])[None, None]  # (1, 1, T, S + T), True = seen
        stages = []
        for number, block in enumerate(self.blocks):
            if self.readers:
                hidden = self.readers[number](hidden, embedded)
            found: Any = block(
                hidden,
                attention_mask=mask,
                position_ids=places,
                position_embeddings=turned,
                past_key_values=cache,
                use_cache=cache is not None,
            )
            hidden = found[0] if isinstance(found, tuple) else found
            stages.append(hidden)
        return torch.stack(stages, dim=2)


def _small_model(config: PretrainedConfig, layers: int) -> Any:
    """A model of the target's family with some blocks and hardly any tokens."""
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size, small.dtype = layers, 8, torch.float32
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    if getattr(small, "sliding_window", None) is not None:
        small.sliding_window = None  # whatever the target does: a text is short
    if getattr(small, "layer_types", None):
        small.layer_types = ["full_attention"] * layers
    model: Any = AutoModelForCausalLM.from_config(small, attn_implementation="sdpa")
    if not hasattr(getattr(model, "model", None), "rotary_emb"):
        raise UnsupportedModelError(
            f"{type(model).__name__}: staged layers need a target with rotary positions; take "
            "sa_layers=0"
        )
    return model


def _end_in_zero(block: Any) -> None:
    """Let a block add nothing to what goes in."""
    for linear in (block.self_attn.o_proj, block.mlp.down_proj):
        nn.init.zeros_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
