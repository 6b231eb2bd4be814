"""Shared fixtures: no network, no progress bars, tiny random models."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    TQDM_DISABLE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    OMP_NUM_THREADS="1",  # models are tiny: a second thread waits more than it works
)

import pytest
import torch

from effllm.modules.modeling.tiny import byte_tokenizer, tiny_model

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt", "opt_post_norm", "gpt2")


@pytest.fixture(params=FAMILIES)
def any_family(request):
    """Name of each supported family in turn."""
    return request.param


@pytest.fixture
def any_model(any_family):
    """A tiny random model of each supported family in turn."""
    return tiny_model(any_family)


@pytest.fixture
def tiny_llama():
    return tiny_model("llama")


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def problem():
    """A layer-wise problem with correlated inputs and outlier channels.

    Call with a seed and sizes; returns (weight (R, C), inputs (N, C), gram (C, C)) in float64.
    """

    def make(seed=0, rows=24, columns=32, tokens=1024):
        generator = torch.Generator().manual_seed(seed)
        mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
        mixing = torch.eye(columns, dtype=torch.float64) + 0.3 * mixing / columns**0.5
        inputs = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mixing
        inputs[:, :2] *= 10.0
        weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return weight, inputs, inputs.T @ inputs / tokens

    return make
