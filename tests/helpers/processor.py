"""What tests need of the processor."""

import pytest
import torch

needs_bfloat16_kernels = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this PyTorch has no bfloat16 kernels for this processor",
)
