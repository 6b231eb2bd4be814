"""Token windows of equal length.

`crop` follows the one-shot pruning literature: draw documents until one is longer than a window,
take one random crop of it. `pack` joins the documents, cuts the text into windows one after the
other, and takes the first ones (the perplexity protocol of the field) or ones spread evenly over
the text (fewer windows that still see every part). All windows are full: no padding.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from effllm.modules.errors import DataError

Encode = Callable[[str], list[int]]


def crop_windows(
    texts: list[str],
    encode: Encode,
    *,
    num_sequences: int,
    sequence_length: int,
    generator: Generator,
) -> Tensor:
    """One random crop from each of `num_sequences` drawn documents (with replacement).

    Args:
        texts: documents.
        encode: text -> token ids.
        num_sequences: windows wanted (N).
        sequence_length: tokens per window (T).
        generator: source of the draws.

    Returns:
        (N, T) int64.

    Raises:
        DataError: if no document is longer than a window.

    Source: sparsegpt/datautils.py `get_c4`; wanda/lib/data.py.
    """
    tokens: dict[int, list[int]] = {}
    long_enough = set(range(len(texts)))
    windows: list[list[int]] = []
    while len(windows) < num_sequences:
        if not long_enough:
            raise DataError(
                f"no document of the calibration text has more than {sequence_length} tokens "
                f"({len(texts)} documents); use a smaller "
                "budget.sequence_length, or windows with mode: pack"
            )
        drawn = _draw(len(texts), generator)
        if drawn not in long_enough:
            continue
        if drawn not in tokens:
            tokens[drawn] = encode(texts[drawn])
        if len(tokens[drawn]) <= sequence_length:
            long_enough.discard(drawn)
            continue
        start = _draw(len(tokens[drawn]) - sequence_length, generator)
        windows.append(tokens[drawn][start : start + sequence_length])
    return torch.tensor(windows)


def pack_windows(
    text: str,
    encode: Encode,
    *,
    num_sequences: int | None,
    sequence_length: int,
    spread: bool = False,
) -> Tensor:
    """Cut one text into consecutive full windows; the tail is dropped.

    Args:
        text: the joined text, tokenised once.
        encode: text -> token ids.
        num_sequences: windows wanted; all if None.
        sequence_length: tokens per window (T).
        spread: take windows at even distances over the text instead of the first ones.

    Returns:
        (N, T) int64, no two windows overlap.

    Raises:
        DataError: if the text has fewer windows than wanted, or none.
    """
    tokens = torch.tensor(encode(text), dtype=torch.int64)
    available = len(tokens) // sequence_length
    wanted = available if num_sequences is None else num_sequences
    if available < wanted or not available:
        raise DataError(
            f"the text has {len(tokens)} tokens: {available} windows of {sequence_length}, but "
            f"{wanted or 1} are needed; give more text or ask for fewer windows"
        )
    windows = tokens[: available * sequence_length].reshape(available, sequence_length)
    if spread:
        return windows[[index * available // wanted for index in range(wanted)]]
    return windows[:wanted]


def _draw(limit: int, generator: Generator) -> int:
    """A number from 0 to limit - 1."""
    return int(torch.randint(limit, (1,), generator=generator))
