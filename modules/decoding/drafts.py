"""What drafts are made with besides the text: a model at hand, the target's first layers, heads.

A proposer that needs a model comes as a factory, and its draft says what the factory is called
with. Trained heads (`heads.loaded`) are such a draft, too.
"""

import copy
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedModel

from effllm.modules.errors import ConfigError
from effllm.modules.inference.fast_path import compiled_steps, speed_up
from effllm.modules.inference.runner import ModelRunner, refuse_unsupported
from effllm.modules.modeling.blocks import decoder_blocks
from effllm.modules.ranges import PositiveInt


class Draft(Protocol):
    """What a factory of a proposer needs."""

    def parts(self, target: ModelRunner) -> dict[str, Any]:
        """Arguments of the factory."""

    def about(self, target: PreTrainedModel) -> dict[str, Any]:
        """What it is, as plain data for reports."""


@dataclass(frozen=True)
class Given:
    """A draft model at hand.

    Args:
        model: of the target's tokenizer; it may predict some of the tokens only.
    """

    model: PreTrainedModel

    def of(self, target: PreTrainedModel) -> PreTrainedModel:
        """The model."""
        return self.model

    def parts(self, target: ModelRunner) -> dict[str, Any]:
        """`runner` of the draft model and `vocabulary` of the target."""
        return {"runner": ModelRunner(self.model), "vocabulary": target.vocabulary}

    def about(self, target: PreTrainedModel) -> dict[str, Any]:
        """`{parameters, layers, of_layers}`, the last null."""
        return {
            "parameters": self.model.num_parameters(),
            "layers": self.model.config.num_hidden_layers,
            "of_layers": None,
        }


@dataclass(frozen=True)
class FirstLayers:
    """The target's own first layers (early exit); they cost no memory.

    Args:
        layers: of the target, fewer than it has.
    """

    layers: PositiveInt

    def of(self, target: PreTrainedModel) -> PreTrainedModel:
        """The model; compiled if the target is."""
        shallow = first_layers(target, self.layers)
        if compiled_steps(target) is not None:
            speed_up(shallow)
        return shallow

    def parts(self, target: ModelRunner) -> dict[str, Any]:
        """As of `Given`."""
        return Given(self.of(target.model)).parts(target)

    def about(self, target: PreTrainedModel) -> dict[str, Any]:
        """As of `Given`; `of_layers` are the target's."""
        found = Given(first_layers(target, self.layers)).about(target)
        return {**found, "of_layers": target.config.num_hidden_layers}


def first_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A model of the first `layers` decoder blocks that shares all weights with `model`.

    Raises:
        ConfigError: if the model has no more layers than asked for.
        UnsupportedModelError: if it cannot be decoded at all.
    """
    refuse_unsupported(model)
    blocks = decoder_blocks(model)
    if not 0 < layers < len(blocks):
        raise ConfigError(
            f"a draft of the first {layers} layers: the model has {len(blocks)}, and a draft needs "
            f"at least 1 and fewer than those; set draft.layers, here {max(1, len(blocks) // 2)}"
        )
    memo: dict[int, object] = {id(value): value for value in model.parameters()}
    memo |= {id(value): value for value in model.buffers()}
    memo |= {id(block): block for block in blocks}
    memo |= {id(leaf): leaf for leaf in model.modules() if not list(leaf.children())}
    memo[id(blocks)] = nn.ModuleList(list(blocks)[:layers])
    shallow = copy.deepcopy(model, memo)
    shallow.config.num_hidden_layers = layers
    if getattr(shallow.config, "layer_types", None):
        shallow.config.layer_types = shallow.config.layer_types[:layers]
    return shallow
