"""Find the decoder blocks of a causal language model and the linear layers inside them.

Nothing here knows a model by name. The blocks are the one `ModuleList` that holds most of the
model's parameters; the prunable layers are all linear maps inside them (`nn.Linear`, and GPT-2's
`Conv1D`, which stores its weight transposed). Embeddings, the output head, norms, biases and
projections outside the blocks are never touched. A block with weight matrices of another kind
(mixture of experts, convolutions, state spaces) is refused by name.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from effllm.modules.errors import UnsupportedModelError


@dataclass(frozen=True)
class LinearLayer:
    """One prunable matrix, seen as (R, C): R outputs, C inputs.

    Attributes:
        name: dotted name inside its block, such as `self_attn.q_proj`.
        module: `nn.Linear` or `Conv1D`.
    """

    name: str
    module: nn.Module

    @property
    def columns(self) -> int:
        """Number of inputs C."""
        return int(self.read().shape[1])

    def read(self) -> Tensor:
        """(R, C) view of the weight, whatever the module stores."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight.data.T if isinstance(self.module, Conv1D) else weight.data

    def write(self, weight: Tensor) -> None:
        """Copy a (R, C) weight in place, cast to the module's dtype."""
        self.read().copy_(weight)


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The repeated decoder blocks of `model`, in order.

    Raises:
        UnsupportedModelError: if no list of equal blocks holds most of the non-embedding weights.
    """
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and len({type(block) for block in module}) == 1
    ]
    outer = [
        one for one in lists if not any(one is not two and _contains(two, one) for two in lists)
    ]
    outer.sort(key=_weight_count, reverse=True)
    if not outer or (len(outer) > 1 and _weight_count(outer[1]) > 0.1 * _weight_count(outer[0])):
        raise UnsupportedModelError(
            f"{type(model).__name__}: expected one list of equal decoder blocks, found "
            f"{len(outer)}; only decoder-only transformers are supported"
        )
    return outer[0]


def linear_layers(model: PreTrainedModel, block: nn.Module) -> list[LinearLayer]:
    """All prunable matrices of one block, in definition order.

    Raises:
        UnsupportedModelError: if the block holds weight matrices that are not linear layers, or
            none at all.
    """
    layers = [
        LinearLayer(name, module)
        for name, module in block.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    ]
    known = {id(layer.module.weight) for layer in layers}
    foreign = [
        f"{name} {tuple(value.shape)}"
        for name, value in block.named_parameters()
        if value.dim() >= 2 and id(value) not in known
    ]
    if foreign or not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__}: block {type(block).__name__} has "
            + (
                f"weights that are no linear layers: {', '.join(foreign[:3])}"
                if foreign
                else "none"
            )
            + "; this method handles dense decoder blocks only"
        )
    return layers


def prunable_layers(model: PreTrainedModel) -> dict[str, LinearLayer]:
    """Every prunable matrix of the model, keyed `<block index>.<name in block>`."""
    return {
        f"{index}.{layer.name}": layer
        for index, block in enumerate(decoder_blocks(model))
        for layer in linear_layers(model, block)
    }


def _weight_count(modules: nn.Module) -> int:
    return sum(value.numel() for value in modules.parameters())


def _contains(outer: nn.Module, inner: nn.Module) -> bool:
    return any(module is inner for module in outer.modules())
