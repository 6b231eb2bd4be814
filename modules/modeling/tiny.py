"""Tiny random models and a byte-level tokenizer, built in code: for tests and smoke runs.

They carry every structural feature that methods must survive (grouped-query attention, biases,
tied and untied heads, q/k norms, post-norm with embedding projections, transposed Conv1D
weights, sliding windows) at a size where a full pipeline takes seconds.
"""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 256 + len(_SPECIAL)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte after three special tokens; encodes any text, 259 tokens in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_SPECIAL[1],
        eos_token=_SPECIAL[2],
        pad_token=_SPECIAL[2],
        unk_token=_SPECIAL[0],
        model_max_length=512,
    )


def tiny_config(family: str) -> PretrainedConfig:
    """A two-layer, 64-wide configuration of one model family.

    Args:
        family: llama, mistral, qwen2, qwen3, opt, opt_post_norm (as OPT-350M), or gpt2.

    Raises:
        ValueError: for another family.
    """
    rotary: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
    }
    opt: dict[str, Any] = {
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    }
    tokens: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    if family == "llama":
        return LlamaConfig(**rotary, **tokens, tie_word_embeddings=True)
    if family == "mistral":
        return MistralConfig(**rotary, **tokens, sliding_window=8)
    if family == "qwen2":
        return Qwen2Config(**rotary, **tokens, tie_word_embeddings=False)
    if family == "qwen3":
        sliding: dict[str, Any] = {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        }
        return Qwen3Config(**rotary, **tokens, **sliding)
    if family == "opt":
        return OPTConfig(**opt, **tokens, word_embed_proj_dim=64)
    if family == "opt_post_norm":
        post_norm: dict[str, Any] = {
            "do_layer_norm_before": False,
            "_remove_final_layer_norm": True,
        }
        return OPTConfig(**opt, **tokens, **post_norm, word_embed_proj_dim=32)
    if family == "gpt2":
        return GPT2Config(**tokens, n_embd=64, n_layer=2, n_head=4, n_positions=512)
    raise ValueError(f"unknown family {family!r}")


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model of `tiny_config(family)`, the same for the same seed.

    Args:
        family: as in `tiny_config`.
        seed: of the weights.
        **changes: of the configuration.
    """
    config = tiny_config(family)
    config.update(changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # Larger than the default initialisation, so that attention and MLP matter to the output.
        for value in model.parameters():
            if value.dim() >= 2:
                value.data.mul_(4.0)
    return model.eval()
