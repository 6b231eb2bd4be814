"""A model that computes with other weights than its own, differentiable in them."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from effllm.modules.modeling.blocks import prunable_layers


class Substitute:
    """A dense model, never changed, whose layers may be given other weights for a pass.

    Args:
        model: put into eval mode; its weights need no gradient.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self.layers = prunable_layers(model)
        places = {id(module): name for name, module in model.named_modules()}
        self._places = {name: places[id(layer.module)] for name, layer in self.layers.items()}

    def logits(self, tokens: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """(b, T, V) float, from (b, T) ids and (R, C) weights of layers, `<block>.<name>`."""
        output = torch.func.functional_call(
            self.model, self._named(weights, ""), (), _arguments(tokens)
        )
        return output.logits.float()

    def hidden(self, tokens: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """(b, T, H) last hidden states; see `logits`."""
        named = self._named(weights, f"{self.model.base_model_prefix}.")
        output = torch.func.functional_call(self.model.base_model, named, (), _arguments(tokens))
        return output.last_hidden_state

    def _named(self, weights: Mapping[str, Tensor] | None, prefix: str) -> dict[str, Tensor]:
        return {
            f"{self._places[name].removeprefix(prefix)}.weight": (
                weight.T if isinstance(self.layers[name].module, Conv1D) else weight
            )
            for name, weight in (weights or {}).items()
        }


def _arguments(tokens: Tensor) -> dict[str, object]:
    return {"input_ids": tokens, "use_cache": False}


def divergence(dense: Tensor, changed: Tensor) -> Tensor:
    """KL(dense || changed) per token, from (b, T, V) logits."""
    return functional.kl_div(
        changed.log_softmax(dim=-1).flatten(0, 1),
        dense.log_softmax(dim=-1).flatten(0, 1),
        log_target=True,
        reduction="batchmean",
    )
