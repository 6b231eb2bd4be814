"""Tiny random models of many families, built in code: what people bring that is no Llama."""

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

_TOKENS = {"vocab_size": 259, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
_WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_WIDE, "intermediate_size": 128, "num_key_value_heads": 2} | {
    "max_position_embeddings": 512
}
_OLD = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
_MIXED = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
CONFIGS: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", _LLAMA),
    "mistral": ("MistralConfig", {**_LLAMA, "sliding_window": None}),
    "mistral, windows": ("MistralConfig", {**_LLAMA, "sliding_window": 16}),
    "qwen2": ("Qwen2Config", _LLAMA),
    "qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 16}),
    "opt": ("OPTConfig", {**_WIDE, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "gpt2": ("GPT2Config", _OLD),
    "gpt_bigcode": ("GPTBigCodeConfig", _OLD),
    "gpt_neox": ("GPTNeoXConfig", {**_WIDE, "intermediate_size": 128}),
    "gptj": ("GPTJConfig", {**_OLD, "rotary_dim": 8}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
        },
    ),
    "falcon": ("FalconConfig", _WIDE),
    "falcon, alibi": ("FalconConfig", {**_WIDE, "alibi": True}),
    "bloom": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 4}),
    "phi": ("PhiConfig", {**_WIDE, "intermediate_size": 128}),
    "phi3": ("Phi3Config", _LLAMA),
    "phi3, windows": ("Phi3Config", {**_LLAMA, "sliding_window": 16}),
    "starcoder2": ("Starcoder2Config", _LLAMA),
    "gemma2": ("Gemma2Config", {**_LLAMA, "head_dim": 16, "sliding_window": 16}),
    "gemma3": ("Gemma3TextConfig", {**_LLAMA, **_MIXED, "head_dim": 16}),
    "gpt_oss": ("GptOssConfig", {**_LLAMA, **_EXPERTS, "head_dim": 16, "sliding_window": 16}),
    "cohere": ("CohereConfig", _LLAMA),
    "olmo": ("OlmoConfig", _LLAMA),
    "olmo3": ("Olmo3Config", {**_LLAMA, **_MIXED}),
    "stablelm": ("StableLmConfig", _LLAMA),
    "mixtral": ("MixtralConfig", {**_LLAMA, **_EXPERTS}),
    "diffllama": ("DiffLlamaConfig", _LLAMA),
    "doge": ("DogeConfig", _LLAMA),
    "gpt": ("OpenAIGPTConfig", _OLD),
    "mamba": ("MambaConfig", {"hidden_size": 64, "num_hidden_layers": 2}),
}


def family_model(name: str) -> PreTrainedModel:
    """A two-layer float32 model of a family, the same at every call."""
    cls, changes = CONFIGS[name]
    config = getattr(transformers, cls)(**{**_TOKENS, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for value in model.parameters():
        if value.dim() >= 2:
            value.data.mul_(4.0)  # attention and MLP shall matter to the output
    return model.eval()
