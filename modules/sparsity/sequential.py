"""Prune a model block by block: statistics, prune, then on through the pruned block.

Each block is measured with its still dense weights but on inputs that come from the already
pruned blocks before it, so later blocks can make up for what earlier ones lost.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effllm.modules.calibration.statistics import Gram, output_error
from effllm.modules.calibration.stream import BlockStream
from effllm.modules.errors import ConfigError, NumericalError
from effllm.modules.modeling.blocks import prunable_layers
from effllm.modules.sparsity.patterns import Pattern
from effllm.modules.sparsity.pruners import Pruned, Pruner


@dataclass
class BlockRecord:
    """What pruning one block left behind.

    Attributes:
        masks: (R, C) bool per layer name, True = kept.
        errors: relative output error per layer on the inputs it was pruned with; empty if the
            pruner gathers no Gram matrix.
        damping: the largest relative damping that a factorisation needed.
        grams: (C, C) Gram matrix per layer name of the pruned block's inputs, if asked for.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    damping: float = 0.0
    grams: dict[str, Tensor] = field(default_factory=dict)


def prune_block(
    stream: BlockStream,
    pruner: Pruner,
    pattern: Pattern,
    *,
    true_sequential: bool = False,
    keep_gram: bool = False,
    orders: Mapping[str, Tensor] | None = None,
) -> BlockRecord:
    """Prune the current block of `stream` in place and move on to the next.

    Args:
        stream: stands in front of the block.
        pruner: scores, and possibly repairs, one matrix.
        pattern: the pattern to reach in every layer.
        true_sequential: measure each group of layers after the groups before it were pruned
            (q/k/v, then o, then gate/up, then down), at one block pass per group.
        keep_gram: also gather the Gram matrices of the pruned block, in the pass that sends the
            hidden states through it anyway.
        orders: (C,) per layer name, equal where inputs are: the pattern's groups, and the sweep of
            pruners that repair, run along this order of channels. None: as they are.

    Raises:
        NumericalError: names the block and layer.

    Source: SparseGPT, opt.py `opt_sequential` and llama.py; Wanda, lib/prune.py.
    """
    layers = {layer.name: layer for layer in stream.layers()}
    record = BlockRecord()
    steps = [[group] for group in stream.groups()] if true_sequential else [stream.groups()]
    for groups in steps:
        statistics: dict[str, Tensor] = {}
        if pruner.statistic is not None:
            statistics = stream.collect(pruner.statistic, groups=groups)
        for names in _stacks(groups, pruner, pattern):
            statistic = statistics.get(names[0])
            originals = [layers[name].read().clone() for name in names]
            try:
                order = None if orders is None else orders[names[0]].to(originals[0].device)
                pruned = _along(order, pruner, torch.cat(originals), statistic, pattern)
            except NumericalError as error:
                raise NumericalError(f"block {stream.index}, layer {names[0]}: {error}") from error
            record.damping = max(record.damping, pruned.damping)
            rows = [len(original) for original in originals]
            parts = zip(pruned.weight.split(rows), pruned.mask.split(rows), strict=True)
            for name, original, (weight, mask) in zip(names, originals, parts, strict=True):
                layers[name].write(weight)
                record.masks[name] = mask.clone()  # not a view of the whole stack
                if statistic is not None and statistic.dim() == 2:
                    record.errors[name] = output_error(original, weight, statistic)
    if keep_gram:
        record.grams = stream.collect(Gram, advance=True)
    elif pruner.statistic is None:
        stream.skip()
    else:
        stream.advance()
    return record


def _along(
    order: Tensor | None,
    pruner: Pruner,
    weight: Tensor,
    statistic: Tensor | None,
    pattern: Pattern,
) -> Pruned:
    """Prune with the channels in another order; the result has them as they were."""
    if order is None:
        return pruner.prune(weight, statistic, pattern)
    if statistic is not None:
        statistic = statistic[order] if statistic.dim() == 1 else statistic[order][:, order]
    pruned = pruner.prune(weight[:, order], statistic, pattern)
    back = order.argsort()
    return replace(pruned, weight=pruned.weight[:, back], mask=pruned.mask[:, back])


def _stacks(groups: list[list[str]], pruner: Pruner, pattern: Pattern) -> list[list[str]]:
    """Layers to prune in one go: those with equal inputs, where rows do not compete."""
    if pattern.rows_are_independent(pruner.scope) and pruner.knows_rows_alone:
        return groups
    return [[name] for group in groups for name in group]


def check_pattern(model: PreTrainedModel, pattern: Pattern) -> None:
    """Refuse a pattern that some layer cannot carry, before any work is done.

    Raises:
        ConfigError: names the layer, its inputs and the pattern.
    """
    for name, layer in prunable_layers(model).items():
        try:
            pattern.check(layer.columns)
        except ValueError as error:
            raise ConfigError(
                f"pattern {pattern.name} does not fit layer {name}: {error}"
            ) from error
