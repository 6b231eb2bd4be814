"""Run a model over calibration windows one decoder block at a time.

Layer-wise methods look at one block after the other: gather statistics of its inputs, change its
weights, then send the hidden states through the changed block to the next one. Only one block's
activations are alive at a time, so the memory needed does not grow with depth, and a run can
stop and go on at any block.

What a block receives besides the hidden states (masks, rotary embeddings, position ids; different
per block in models with sliding windows) is captured once from a real forward pass. All windows
have equal length and no padding, so one capture serves every batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effllm.modules.errors import NumericalError, UnsupportedModelError
from effllm.modules.modeling.blocks import LinearLayer, decoder_blocks, linear_layers
from effllm.modules.sparsity.gram import Statistic


class _Stop(Exception):
    """Raised by a hook to leave a forward pass early."""


class BlockStream:
    """Hidden states of all windows in front of the current decoder block.

    Args:
        model: a causal language model; put into eval mode, its cache is not used.
        windows: (N, T) token ids, full windows without padding.
        batch_size: windows per forward pass; does not change results beyond rounding.

    Attributes:
        blocks: the decoder blocks.
        hidden: list of (b, T, C) inputs of the current block.
        index: the current block.

    Raises:
        UnsupportedModelError: if the blocks cannot be found or replayed.
    """

    def __init__(self, model: PreTrainedModel, windows: Tensor, batch_size: int) -> None:
        self.model = model.eval()
        self.blocks = decoder_blocks(model)
        self.index = 0
        self.batch_size = batch_size
        self._device = next(self.blocks[0].parameters()).device
        self._extras, self._groups = self._probe(windows[:1])
        self.hidden = [self._embed(batch) for batch in windows.split(batch_size)]

    def layers(self) -> list[LinearLayer]:
        """Prunable layers of the current block."""
        return linear_layers(self.model, self.blocks[self.index])

    def groups(self) -> list[list[str]]:
        """Layer names of the current block in call order, those with equal inputs together."""
        return self._groups[self.index]

    def all_groups(self) -> list[list[list[str]]]:
        """`groups()` of every block."""
        return self._groups

    def resume(self, index: int, hidden: Tensor) -> None:
        """Stand in front of block `index` with stored (N, T, C) hidden states."""
        self.index = index
        self.hidden = list(hidden.to(self._device).split(self.batch_size)) if len(hidden) else []

    @torch.no_grad()
    def collect(
        self,
        statistic: Callable[..., Statistic],
        *,
        groups: list[list[str]] | None = None,
        advance: bool = False,
    ) -> dict[str, Tensor]:
        """Statistics of the inputs of the current block's layers, one per group of equal inputs.

        Args:
            statistic: builds a statistic from the number of columns and the device.
            groups: the groups wanted; all if None.
            advance: also move on to the next block (the weights then count as unchanged).

        Returns:
            Statistic per layer name; layers of one group share the same tensor.

        Raises:
            NumericalError: if inputs are not finite; names the block and layer.
        """
        wanted = self.groups() if groups is None else groups
        layers = {layer.name: layer for layer in self.layers()}
        running = {
            group[0]: statistic(layers[group[0]].columns, device=self._device) for group in wanted
        }
        last = wanted[-1][0] if wanted and not advance else None

        def update(name: str, inputs: Tensor) -> None:
            running[name].update(inputs)
            if name == last:  # nothing behind this layer is needed
                raise _Stop

        handles = [
            layers[name].module.register_forward_pre_hook(
                lambda _, args, name=name: update(name, args[0])
            )
            for name in running
        ]
        try:
            self._run(keep=advance)
        finally:
            for handle in handles:
                handle.remove()
        values = {}
        for group in wanted:
            try:
                value = running[group[0]].value()
            except NumericalError as error:
                place = self.index - 1 if advance else self.index
                raise NumericalError(f"block {place}, layer {group[0]}: {error}") from error
            values.update(dict.fromkeys(group, value))
        return values

    @torch.no_grad()
    def advance(self) -> None:
        """Send the hidden states through the current block and stand in front of the next."""
        self._run(keep=True)

    def skip(self) -> None:
        """Stand in front of the next block without running this one; nothing can be collected."""
        self.index, self.hidden = self.index + 1, []

    def _run(self, *, keep: bool) -> None:
        if not self.hidden:
            raise RuntimeError("the stream was moved on without its hidden states")
        block, extras = self.blocks[self.index], self._extras[self.index]
        for number, hidden in enumerate(self.hidden):
            try:
                output = block(hidden, **extras)
            except _Stop:
                continue
            if keep:
                self.hidden[number] = output[0] if isinstance(output, tuple) else output
        if keep:
            self.index += 1

    @torch.no_grad()
    def _embed(self, batch: Tensor) -> Tensor:
        """Inputs of block 0 for a (b, T) batch."""
        captured: list[Tensor] = []

        def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured.append(args[0] if args else kwargs["hidden_states"])
            raise _Stop

        handle = self.blocks[0].register_forward_pre_hook(capture, with_kwargs=True)
        try:
            self.model(input_ids=batch.to(self.model.device), use_cache=False)
        except _Stop:
            pass
        finally:
            handle.remove()
        return captured[0]

    @torch.no_grad()
    def _probe(self, window: Tensor) -> tuple[list[dict[str, Any]], list[list[list[str]]]]:
        """One real pass over a (1, T) window: what each block is given, and who shares inputs."""
        extras: list[dict[str, Any]] = []
        inputs: list[dict[str, Tensor]] = [
            {} for _ in self.blocks
        ]  # kept alive: pointers stay valid

        def capture(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = {
                k: v for k, v in kwargs.items() if k not in ("hidden_states", "past_key_values")
            }
            if len(args) > 1 and any(value is not None for value in args[1:]):
                raise UnsupportedModelError(
                    f"{type(self.model).__name__}: {type(block).__name__} takes positional "
                    "arguments besides the hidden states; its blocks cannot be replayed"
                )
            extras.append(given)

        with _hooks() as handles:
            for index, block in enumerate(self.blocks):
                handles.append(block.register_forward_pre_hook(capture, with_kwargs=True))
                for layer in linear_layers(self.model, block):
                    handles.append(
                        layer.module.register_forward_pre_hook(
                            lambda _, args, seen=inputs[index], name=layer.name: seen.update(
                                {name: args[0]}
                            )
                        )
                    )
            self.model(input_ids=window.to(self.model.device), use_cache=False)
        for index, block in enumerate(self.blocks):
            unused = {layer.name for layer in linear_layers(self.model, block)} - set(inputs[index])
            if unused:
                raise UnsupportedModelError(
                    f"{type(self.model).__name__}: block {index} does not call its linear layers "
                    f"{', '.join(sorted(unused))}; they could not be measured"
                )
        return extras, [_shared_inputs(seen) for seen in inputs]


def _shared_inputs(seen: dict[str, Tensor]) -> list[list[str]]:
    groups: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, value in seen.items():
        groups.setdefault((value.data_ptr(), tuple(value.shape)), []).append(name)
    return list(groups.values())


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()
