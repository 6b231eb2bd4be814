"""Requests about passages: what a target is asked when it writes the training text of its draft.

Every request of one kind has the same number of tokens, since the passage is cut to a number of
tokens: texts of equal length can be decoded together without padding. The wordings differ from
those of the benchmark's prompts, and the articles are those of the `train` split.
"""

from collections.abc import Callable
from random import Random

from effllm.modules.data.texts import Document
from effllm.modules.errors import DataError

# None: no request, the passage is simply continued.
REQUESTS = (
    None,
    "Continue this text:\n\n{}",
    "What is this text about?\n\n{}",
    "Summarize the passage below.\n\n{}",
    "Explain this to a child.\n\n{}",
    "Write three questions about this text and answer them.\n\n{}",
    "Repeat the following text exactly.\n\n{}",
    "List the names, places and numbers in this text.\n\n{}",
)
Encoder = Callable[[str, bool], list[int]]


def passage_requests(
    documents: list[Document],
    encode: Encoder,
    decode: Callable[[list[int]], str],
    *,
    count: int,
    tokens: int,
    seed: int,
) -> list[list[int]]:
    """Token ids of `count` requests about different passages, wordings in turn.

    Args:
        documents: articles.
        encode: text and whether it is a user's turn of a chat -> token ids.
        decode: token ids -> text.
        count: requests wanted.
        tokens: length of each passage.
        seed: of the choice of passages.

    Raises:
        DataError: if the articles hold fewer passages than `count` needs.
    """
    passages = []
    for document in documents:
        ids = encode(document.text, False)
        passages += [ids[at : at + tokens] for at in range(0, len(ids) - tokens + 1, tokens)]
    Random(seed).shuffle(passages)
    needed = -(-count // len(REQUESTS))  # each passage serves every wording
    if len(passages) < needed:
        raise DataError(
            f"requests: the articles hold {len(passages)} passages of {tokens} tokens, "
            f"{needed} are needed; give more text, or ask for fewer or shorter passages"
        )
    # All wordings share the pool, each starting elsewhere, so no passage is used twice early on.
    found = []
    for number in range(count):
        request = REQUESTS[number % len(REQUESTS)]
        passage = passages[number % len(passages)]
        found.append(passage if request is None else encode(request.format(decode(passage)), True))
    return found
