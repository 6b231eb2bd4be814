"""Linear layers with weights packed once for the CPU's bfloat16 kernels.

PyTorch's eager linear reads a row-major weight and rearranges it at every call; with a handful of
tokens that costs a third of a decoding step. Packing once gives the same products for any number
of tokens and needs no compiler. Layers that read the same input (query, key and value; gate and up)
become one product, since a small one costs more to start than to compute. Weights are kept twice:
the packed copy beside the original.
"""

import torch
from torch import Tensor, nn

_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names in one module


class _PackedProduct:
    """The product of one input with the stacked weights of some layers.

    The result is kept until every layer has read its rows: they are called one after the other
    with the same tensor. A call with another tensor, or with one that was changed since, computes
    anew, so any order of calls is right.
    """

    def __init__(self, linears: list[nn.Linear]) -> None:
        weight = torch.cat([one.weight.detach() for one in linears])
        biases = [one.bias.detach() for one in linears if one.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        self._layers = len(linears)
        self._forget()

    def _forget(self) -> None:
        self._inputs: Tensor | None = None
        self._version = 0
        self._product: Tensor | None = None
        self._readers: set[int] = set()

    def rows(self, layer: int, start: int, stop: int, inputs: Tensor) -> Tensor:
        """(..., C) -> (..., stop - start), the rows of one layer."""
        if self._layers == 1:
            return self._multiply(inputs)
        version = 0 if inputs.is_inference() else inputs._version
        known = inputs is self._inputs and version == self._version
        if not known or layer in self._readers:
            self._forget()
            self._inputs, self._version = inputs, version
            self._product = self._multiply(inputs)
        assert self._product is not None
        found = self._product[..., start:stop]
        self._readers.add(layer)
        if len(self._readers) == self._layers:
            self._forget()
        return found

    def _multiply(self, inputs: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._packed, self._bias, "none", [], ""
        )
        return product


class PackedLinear(nn.Module):
    """A linear layer that multiplies with a packed copy of its weight.

    Args:
        linear: a bfloat16 layer on the CPU; its parameters are shared.
        product: computes it, perhaps with other layers of the same input.
        layer: its place among them.
        start: its first row in the product.
    """

    def __init__(
        self, linear: nn.Linear, product: _PackedProduct, layer: int = 0, start: int = 0
    ) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._product, self._layer, self._start = product, layer, start

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., C) bfloat16 -> (..., R) bfloat16; no gradient."""
        stop = self._start + self.out_features
        return self._product.rows(self._layer, self._start, stop, inputs)


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
        linears = {
            name: one
            for name, one in module.named_children()
            if isinstance(one, nn.Linear) and _can_pack(one)
        }
        for names in _groups(linears):
            product = _PackedProduct([linears[name] for name in names])
            start = 0
            for layer, name in enumerate(names):
                setattr(module, name, PackedLinear(linears[name], product, layer, start))
                start += linears[name].out_features
            packed += len(names)
    return packed


def _can_pack(linear: nn.Linear) -> bool:
    weight = linear.weight
    plain = type(linear) is nn.Linear
    return plain and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"


def _groups(linears: dict[str, nn.Linear]) -> list[list[str]]:
    """Names of layers with one product: those with the same input, and each of the rest alone."""
    groups = []
    for wanted in _SAME_INPUT:
        found = [linears[name] for name in wanted if name in linears]
        alike = {(one.in_features, one.bias is None) for one in found}
        if len(found) == len(wanted) and len(alike) == 1:
            groups.append(list(wanted))
    grouped = {name for names in groups for name in names}
    return groups + [[name] for name in linears if name not in grouped]
