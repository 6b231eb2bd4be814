"""The first layers of a model as a model of their own, without a copy of any weight."""

import copy

from torch import nn
from transformers import PreTrainedModel

from effllm.modules.errors import ConfigError
from effllm.modules.inference.runner import refuse_unsupported
from effllm.modules.modeling.blocks import decoder_blocks


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
    memo |= {id(one): one for one in model.modules() if not list(one.children())}  # shared as well
    memo[id(blocks)] = nn.ModuleList(list(blocks)[:layers])
    shallow = copy.deepcopy(model, memo)
    shallow.config.num_hidden_layers = layers
    if getattr(shallow.config, "layer_types", None):
        shallow.config.layer_types = shallow.config.layer_types[:layers]
    return shallow
