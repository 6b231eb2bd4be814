"""Forward passes that start behind blocks whose outputs are known already.

A search changes a few blocks of a model at a time. What enters the first changed block is the same
as before, so the pass starts there: the same numbers to the last bit, fewer block evaluations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effllm.modules.modeling.blocks import decoder_blocks


class ResumableModel:
    """Runs a causal language model from any decoder block on.

    Args:
        model: put into eval mode; its blocks are patched during passes only.

    Attributes:
        evaluated: blocks evaluated so far, each counted with its tokens.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.blocks = decoder_blocks(model)
        self.evaluated = 0

    @torch.no_grad()
    def run(
        self,
        batch: Tensor,
        *,
        start: int = 0,
        inputs: list[Tensor] | None = None,
        keep: bool = True,
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits of a batch.

        Args:
            batch: (B, T) token ids without padding.
            start: first block to evaluate.
            inputs: (B, T, C) what enters each block up to `start`, from an earlier pass over the
                same batch; needed if start > 0.
            keep: hold what enters the blocks.

        Returns:
            (B, T, V) logits in the model's dtype, and what entered each block, if it was kept.
        """
        if start and (inputs is None or len(inputs) <= start):
            raise ValueError(f"starting at block {start} needs what enters it")
        entered = list(inputs[:start]) if inputs and keep else []
        known = inputs[start] if inputs and start else None
        with self._patched(start, known, entered if keep else None):
            logits = self.model(input_ids=batch.to(self.model.device), use_cache=False).logits
        self.evaluated += (len(self.blocks) - start) * batch.numel()
        return logits, entered

    @contextmanager
    def _patched(
        self, start: int, known: Tensor | None, entered: list[Tensor] | None
    ) -> Iterator[None]:
        def skip(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return hidden

        def evaluate(original: Any, first: bool) -> Any:
            def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
                hidden = known if first and known is not None else hidden
                if entered is not None:
                    entered.append(hidden)
                return original(hidden, *args, **kwargs)

            return forward

        blocks: list[Any] = list(self.blocks)
        try:
            for index, block in enumerate(blocks):
                block.forward = skip if index < start else evaluate(block.forward, index == start)
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)  # the class's method shows again
