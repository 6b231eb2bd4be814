"""Run a model over calibration windows one decoder block at a time.

Layer-wise methods look at one block after the other: gather statistics of its inputs, change its
weights, then send the hidden states through the changed block to the next one. Only one block's
activations are alive at a time, so the memory needed does not grow with depth, and a run can
stop and go on at any block.

What a block receives besides the hidden states (masks, rotary embeddings, position ids, ALiBi;
different per block in models with sliding windows) is captured from a real forward pass over one
window and compared with that over two. What is the same serves every batch; what is there twice
(Bloom's ALiBi has a row per window and head) is repeated for every window. All windows have equal
length and no padding, so nothing else may differ: a model whose blocks are told something about
the text, or are not called in a plain row, is refused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effllm.modules.calibration.statistics import Statistic
from effllm.modules.errors import NumericalError, UnsupportedModelError
from effllm.modules.modeling.blocks import LinearLayer, decoder_blocks, linear_layers

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


class _Stop(Exception):
    """Raised by a hook to leave a forward pass early."""


@dataclass(frozen=True)
class _PerWindow:
    """(n, …) rows that a block is given for one window; (b * n, …) for b windows."""

    rows: Tensor

    def repeated(self, windows: int) -> Tensor:
        if len(self.rows) == 1:
            return self.rows.expand(windows, *self.rows.shape[1:])
        return torch.cat([self.rows] * windows)


class BlockStream:
    """Hidden states of all windows in front of the current decoder block.

    Args:
        model: a causal language model, or a transformer of pictures; put into eval mode, its cache
            is not used.
        windows: (N, T) token ids, full windows without padding; or (N, channels, height, width)
            float pixels.
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
        self._extras, self._groups = self._probe(windows[:2])
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
        block = self.blocks[self.index]
        for number, hidden in enumerate(self.hidden):
            args, kwargs = _for_windows(self._extras[self.index], len(hidden))
            try:
                output = block(hidden, *args, **kwargs)
            except _Stop:
                continue
            if keep:
                self.hidden[number] = _hidden_of(output)
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
            self._call(batch)
        except _Stop:
            pass
        finally:
            handle.remove()
        return captured[0]

    @torch.no_grad()
    def _probe(self, windows: Tensor) -> tuple[list[Any], list[list[list[str]]]]:
        """Real passes over one and two windows: what each block is given, who shares inputs."""
        inputs: list[dict[str, Tensor]] = [
            {} for _ in self.blocks
        ]  # kept alive: pointers stay valid
        with _hooks() as handles:
            for index, block in enumerate(self.blocks):
                for layer in linear_layers(self.model, block):
                    handles.append(
                        layer.module.register_forward_pre_hook(
                            lambda _, args, seen=inputs[index], name=layer.name: seen.update(
                                {name: args[0]}
                            )
                        )
                    )
            extras = self._given(windows[:1])
        for index, block in enumerate(self.blocks):
            unused = {layer.name for layer in linear_layers(self.model, block)} - set(inputs[index])
            if unused:
                raise self._refusal(
                    f"block {index} does not call its linear layers {', '.join(sorted(unused))}; "
                    "they could not be measured"
                )
        groups = [_shared_inputs(seen) for seen in inputs]
        if len(windows) == 1:
            return extras, groups
        try:
            both = zip(extras, self._given(windows), strict=True)
            return [_compared(one, two, "arguments") for one, two in both], groups
        except _DiffersError as error:
            raise self._refusal(
                f"what its blocks are given ({error}) depends on the text; they cannot be replayed"
            ) from error

    def _given(self, windows: Tensor) -> list[tuple[list[Any], dict[str, Any]]]:
        """Positional and named arguments of every block, hidden states and cache left out."""
        given: list[tuple[list[Any], dict[str, Any]]] = []
        outputs: list[Tensor] = []

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            in_order = len(given) < len(self.blocks) and block is self.blocks[len(given)]
            if not in_order or (outputs and not torch.equal(outputs.pop(), hidden)):
                raise self._refusal(
                    "its blocks are not called in a plain row, the output of one the input of the "
                    "next; they cannot be replayed"
                )
            known = windows.shape if _is_text(windows) else windows.shape[:1]
            if hidden.shape[: len(known)] != known:
                raise self._refusal(
                    f"its blocks are given {tuple(hidden.shape)} for {tuple(windows.shape)} "
                    f"{'tokens' if _is_text(windows) else 'pixels'}; they cannot be replayed"
                )
            named = {
                k: v for k, v in kwargs.items() if k not in ("hidden_states", "past_key_values")
            }
            given.append((list(args[1:]), named))

        def leave(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            outputs.append(_hidden_of(output))

        with _hooks() as handles:
            for block in self.blocks:
                handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(block.register_forward_hook(leave))
            self._call(windows)
        if len(given) != len(self.blocks):
            raise self._refusal(f"it calls {len(given)} of its {len(self.blocks)} blocks")
        return given

    def _call(self, windows: Tensor) -> None:
        if _is_text(windows):
            self.model(input_ids=windows.to(self.model.device), use_cache=False)
        else:
            self.model(pixel_values=windows.to(self.model.device, self.model.dtype))

    def _refusal(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{type(self.model).__name__}: {what}; take a model of another family (model=…)"
        )


def _is_text(windows: Tensor) -> bool:
    return not windows.is_floating_point()


def _hidden_of(output: Any) -> Tensor:
    """Hidden states in what a block returns; some also return attention."""
    hidden: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return hidden


class _DiffersError(Exception):
    """An argument is another one for other windows; its name."""


def _compared(one: Any, two: Any, name: str) -> Any:
    """What serves every batch, from a block's arguments for one window and for two."""
    if isinstance(one, (tuple, list)) and isinstance(two, (tuple, list)) and len(one) == len(two):
        pairs = zip(one, two, strict=True)
        return type(one)([_compared(a, b, f"{name}[{n}]") for n, (a, b) in enumerate(pairs)])
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return {key: _compared(value, two[key], str(key)) for key, value in one.items()}
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if torch.equal(one, two):
            return one
        if one.dim() and torch.equal(two, _PerWindow(one).repeated(2)):
            return _PerWindow(one)
    elif isinstance(one, _PLAIN) and one == two:
        return one
    raise _DiffersError(name)


def _for_windows(given: Any, windows: int) -> Any:
    """A block's arguments for a batch of so many windows."""
    if isinstance(given, _PerWindow):
        return given.repeated(windows)
    if isinstance(given, (tuple, list)):
        return type(given)([_for_windows(value, windows) for value in given])
    if isinstance(given, dict):
        return {key: _for_windows(value, windows) for key, value in given.items()}
    return given


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
