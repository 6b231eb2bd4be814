"""Token windows of equal length.

`crop` follows the one-shot pruning literature: draw documents until one is longer than a window,
take one random crop of it. `pack` joins the documents, cuts the text into windows one after the
other, and takes the first ones (the perplexity protocol of the field) or ones spread evenly over
the text (fewer windows that still see every part). All windows are full: no padding. Each window
comes with the document that it is from, since windows of one document are not independent.
"""

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Generator, Tensor

from effllm.modules.errors import DataError

# Text -> token ids, and the character at which each token begins.
Encode = Callable[[str], tuple[list[int], list[int]]]


def crop_windows(
    texts: list[str],
    encode: Encode,
    *,
    num_sequences: int,
    sequence_length: int,
    generator: Generator,
) -> tuple[Tensor, list[int]]:
    """One random crop from each of `num_sequences` drawn documents (with replacement).

    Args:
        texts: documents.
        encode: text -> token ids, and where each begins.
        num_sequences: windows wanted (N).
        sequence_length: tokens per window (T).
        generator: source of the draws.

    Returns:
        (N, T) int64, and the N documents that were cropped, as indices.

    Raises:
        DataError: if no document is longer than a window, or windows outnumber the characters.

    Source: sparsegpt/datautils.py `get_c4`; wanda/lib/data.py.
    """
    characters = sum(map(len, texts))
    if num_sequences > characters:  # every crop many times over, and nearly without end
        raise DataError(
            f"{num_sequences} windows are wanted of a text of {characters} characters; ask for less"
        )
    tokens: dict[int, list[int]] = {}
    long_enough = set(range(len(texts)))
    windows: list[list[int]] = []
    documents: list[int] = []
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
            tokens[drawn], _ = encode(texts[drawn])
        if len(tokens[drawn]) <= sequence_length:
            long_enough.discard(drawn)
            continue
        start = _draw(len(tokens[drawn]) - sequence_length, generator)
        windows.append(tokens[drawn][start : start + sequence_length])
        documents.append(drawn)
    return torch.tensor(windows), documents


def pack_windows(
    texts: list[str],
    encode: Encode,
    *,
    joiner: str,
    num_sequences: int | None,
    sequence_length: int,
    spread: bool = False,
) -> tuple[Tensor, list[int]]:
    """Cut the joined documents into consecutive full windows; the tail is dropped.

    Args:
        texts: documents, joined and then tokenised once.
        encode: text -> token ids, and where each begins.
        joiner: what stands between two documents.
        num_sequences: windows wanted; all if None.
        sequence_length: tokens per window (T).
        spread: take windows at even distances over the text instead of the first ones.

    Returns:
        (N, T) int64, no two windows overlap; and for each the document that holds the beginning of
        its middle token, as an index.

    Raises:
        DataError: if the text has fewer windows than wanted, or none.
    """
    ids, begins = encode(joiner.join(texts))
    tokens = torch.tensor(ids, dtype=torch.int64)
    available = len(tokens) // sequence_length
    wanted = available if num_sequences is None else num_sequences
    if available < wanted or not available:
        raise DataError(
            f"the text has {len(tokens)} tokens: {available} windows of {sequence_length}, but "
            f"{wanted or 1} are needed; give more text or ask for fewer windows"
        )
    chosen = [index * available // wanted if spread else index for index in range(wanted)]
    windows = tokens[: available * sequence_length].reshape(available, sequence_length)[chosen]
    ends = list(accumulate(len(text) + len(joiner) for text in texts))
    middles = [begins[index * sequence_length + sequence_length // 2] for index in chosen]
    return windows, [bisect_right(ends, middle) for middle in middles]


def _draw(limit: int, generator: Generator) -> int:
    """A number from 0 to limit - 1."""
    return int(torch.randint(limit, (1,), generator=generator))
