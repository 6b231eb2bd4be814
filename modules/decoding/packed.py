"""Linear layers with weights packed once for the CPU's bfloat16 kernels.

PyTorch's eager linear reads a row-major weight and rearranges it at every call; with a handful of
tokens that costs a third of a decoding step. Packing once gives the same products for any number
of tokens and needs no compiler. Weights are kept twice: the packed copy beside the original.
"""

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer that multiplies with a packed copy of its weight.

    Args:
        linear: a bfloat16 layer on the CPU; its parameters are shared.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., C) bfloat16 -> (..., R) bfloat16; no gradient."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._packed, self.bias, "none", [], ""
        )
        return product


def pack_linears(model: nn.Module) -> int:
    """Replace every bfloat16 linear layer on the CPU by a packed one, in place.

    The model can no longer be trained or pruned: changes of a weight would not reach its copy.

    Returns:
        Number of packed layers; 0 where this machine's PyTorch has no such kernels, where the
        model is not bfloat16, or on a GPU. The model then decodes as before.
    """
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return 0
    packed = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is not nn.Linear:
                continue
            weight = child.weight
            if weight.dtype == torch.bfloat16 and weight.device.type == "cpu":
                setattr(module, name, PackedLinear(child))
                packed += 1
    return packed
