"""A target's last hidden states on texts: computed once, read from disk ever after.

Training heads then needs no pass of the target: labels are the tokens, and the target's own law at
any place follows from the state there. Texts that loop are cut, since every drafter shines on a
loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel


@dataclass(frozen=True)
class StateBatch:
    """Some texts, padded at their ends.

    Attributes:
        tokens: (B, T) int64.
        hidden: (B, T, C) float32, after the target's final norm; row t has read tokens 0 .. t.
        lengths: (B,) tokens of each text.
        prompt_lengths: (B,) of them that the target did not write.
    """

    tokens: Tensor
    hidden: Tensor
    lengths: Tensor
    prompt_lengths: Tensor


class StateTexts:
    """Texts with hidden states in shards, read where they are needed.

    Args:
        shards: safetensors files with `tokens` (n,), `hidden` (n, C), `lengths` and
            `prompt_lengths` of their texts.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self._files: list[Any] = [safe_open(one, framework="pt") for one in shards]
        lengths = [one.get_tensor("lengths") for one in self._files]
        self.lengths = torch.cat(lengths)
        self.prompt_lengths = torch.cat([one.get_tensor("prompt_lengths") for one in self._files])
        self._places = [
            (shard, int(start))
            for shard, mine in enumerate(lengths)
            for start in mine.cumsum(0) - mine
        ]

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, texts: Sequence[int], device: torch.device | str = "cpu") -> StateBatch:
        """The texts of these numbers."""
        tokens, hidden = [], []
        for text in texts:
            shard, start = self._places[text]
            part = slice(start, start + int(self.lengths[text]))
            tokens.append(self._files[shard].get_slice("tokens")[part].long())
            hidden.append(self._files[shard].get_slice("hidden")[part].float())
        chosen = torch.tensor(list(texts))
        return StateBatch(
            pad_sequence(tokens, batch_first=True).to(device),
            pad_sequence(hidden, batch_first=True).to(device),
            self.lengths[chosen].to(device),
            self.prompt_lengths[chosen].to(device),
        )

    def all_tokens(self) -> list[list[int]]:
        """Token ids of every text, prompt included."""
        flat = torch.cat([one.get_tensor("tokens") for one in self._files]).tolist()
        ends = self.lengths.cumsum(0).tolist()
        return [flat[end - length : end] for end, length in zip(ends, self.lengths, strict=True)]


@torch.no_grad()
def last_hidden(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Hidden states of texts in one pass, after the final norm.

    Args:
        model: causal, so that padding at the ends is not seen.
        texts: token ids.

    Returns:
        (L, C) per text, of the model's dtype, on the CPU.
    """
    padded = pad_sequence([torch.tensor(one) for one in texts], batch_first=True)
    hidden = model.base_model(input_ids=padded.to(model.device), use_cache=False)
    states: Tensor = hidden.last_hidden_state.cpu()
    return [row[: len(one)].clone() for row, one in zip(states, texts, strict=True)]


def before_loop(answer: Sequence[int], tokens: int) -> int:
    """How much of an answer comes before it repeats a stretch of itself.

    Args:
        answer: token ids that the target wrote.
        tokens: length of a stretch that does not come twice by chance.

    Returns:
        Tokens before the second coming of the first stretch that comes twice; all if none does.
    """
    seen: dict[tuple[int, ...], int] = {}
    for start in range(len(answer) - tokens + 1):
        if seen.setdefault(tuple(answer[start : start + tokens]), start) != start:
            return start
    return len(answer)
