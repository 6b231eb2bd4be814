"""What drafting heads use of their target: its embedding, and rows of its output head.

They are frozen, and held outside of all modules: neither trained, nor stored with the heads.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from effllm.modules.errors import UnsupportedModelError


@dataclass(frozen=True)
class FrozenTarget:
    """Embedding and reduced head of a target.

    Attributes:
        embedding: (V, C) of the target's dtype.
        rows: (n, C) float32, the head's rows of `token_ids`.
        token_ids: (n,) rising, the tokens that heads can guess.
    """

    embedding: Tensor
    rows: Tensor
    token_ids: Tensor

    @classmethod
    def of(cls, embedding: Tensor, head: Tensor, token_ids: Tensor) -> "FrozenTarget":
        """Parts for some tokens of a (V, C) embedding and a (V, C) head."""
        return cls(embedding, head[token_ids].float(), token_ids)

    def to(self, device: torch.device | str) -> "FrozenTarget":
        """The same on a device."""
        return dataclasses.replace(
            self, **{key: value.to(device) for key, value in vars(self).items()}
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """(...) token ids -> (..., C) float32."""
        return self.embedding[tokens].float()

    def logits(self, vectors: Tensor) -> Tensor:
        """(..., C) -> (..., n) logits of `token_ids`."""
        return vectors @ self.rows.T

    def columns(self, tokens: Tensor) -> Tensor:
        """(...) token ids -> (...) columns of the logits, -1 for tokens that cannot be guessed."""
        found = torch.searchsorted(self.token_ids, tokens).clamp(max=len(self.token_ids) - 1)
        return torch.where(self.token_ids[found] == tokens, found, -1)


def with_lowest(token_ids: Tensor, count: int, vocabulary: int) -> Tensor:
    """Some tokens, and the lowest others until there are `count`.

    Tokenizers number tokens by how early they were merged, so low numbers are usual tokens; few
    texts do not hold all that heads will have to guess.

    Args:
        token_ids: (n,) token ids.
        count: tokens wanted; `token_ids` if they are as many already.
        vocabulary: tokens that there are.

    Returns:
        (max(n, min(count, vocabulary)),) rising token ids.
    """
    known = set(token_ids.tolist())
    others = [token for token in range(vocabulary) if token not in known]
    return torch.tensor(sorted([*known, *others[: max(0, count - len(known))]]))


def frozen_weights(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The (V, C) embedding and the (V, C) head of a model, one and the same if they are tied.

    Raises:
        UnsupportedModelError: if the head has a bias, or reads vectors of another size.
    """
    embedding: Any = model.get_input_embeddings().weight
    head: Any = model.get_output_embeddings()
    name = type(model).__name__
    if getattr(head, "bias", None) is not None:
        raise UnsupportedModelError(
            f"{name}: its output head has a bias, drafting heads share none"
        )
    if head.weight.shape[1] != embedding.shape[1]:
        raise UnsupportedModelError(
            f"{name}: its head reads {head.weight.shape[1]} numbers, its embedding has "
            f"{embedding.shape[1]}; drafting heads need both equal"
        )
    return embedding.detach(), head.weight.detach()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the vocabulary."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
