"""Kullback-Leibler divergence of a model's predictions from a teacher's, whole or over top tokens.

`full` looks at every token. `topk_renorm` (the released Týr code) renormalises both sides over the
teacher's k likeliest tokens and cannot see what the student puts elsewhere. `topk_rest` (ours) adds
one bucket for all other tokens: a lower bound of the full divergence that rises with k.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effllm.modules.errors import ConfigError

Divergence = Literal["full", "topk_renorm", "topk_rest"]
KINDS = ("full", "topk_renorm", "topk_rest")

_LITTLE = 1e-9  # probability mass below which the rest bucket says nothing


@dataclass(frozen=True)
class Teacher:
    """What is remembered of a teacher's predictions.

    Attributes:
        kind: which divergence.
        ids: (T, k) int32 tokens, or None for all of them.
        log_probs: (T, k) float32, normalised as `kind` wants.
    """

    kind: Divergence
    ids: Tensor | None
    log_probs: Tensor

    @classmethod
    def of(cls, logits: Tensor, kind: Divergence, top_k: int) -> "Teacher":
        """Remember (T, V) logits.

        Raises:
            ConfigError: for another kind or top_k < 1.
        """
        if kind not in KINDS or top_k < 1:
            raise ConfigError(
                f"divergence: one of {', '.join(KINDS)} with top_k of at least 1, found {kind!r} "
                f"with {top_k}"
            )
        if kind == "full" or top_k >= logits.shape[-1]:
            return cls("full", None, torch.log_softmax(logits.float(), dim=-1))
        values, ids = logits.float().topk(top_k, dim=-1)
        whole = logits.float() if kind == "topk_rest" else values
        log_probs = values - whole.logsumexp(dim=-1, keepdim=True)
        return cls(kind, ids.to(torch.int32), log_probs)

    def to(self, device: torch.device | str) -> "Teacher":
        """The same on another device."""
        ids = None if self.ids is None else self.ids.to(device)
        return Teacher(self.kind, ids, self.log_probs.to(device))

    def divergence(self, logits: Tensor) -> Tensor:
        """(T,) float32 KL(teacher || student) in nats for the student's (T, V) logits."""
        student = logits.float()
        if self.ids is None:
            return _kl(self.log_probs, torch.log_softmax(student, dim=-1))
        values = student.gather(-1, self.ids.long())
        whole = student if self.kind == "topk_rest" else values
        log_probs = values - whole.logsumexp(dim=-1, keepdim=True)
        found = _kl(self.log_probs, log_probs)
        if self.kind == "topk_rest":
            mine, theirs = (1 - one.exp().sum(dim=-1) for one in (self.log_probs, log_probs))
            mine, theirs = mine.clamp_min(_LITTLE), theirs.clamp_min(_LITTLE)
            found = found + mine * (mine.log() - theirs.log())
        return found


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """(T,) from (T, k) log-probabilities."""
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


@torch.no_grad()
def record_teacher(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    kind: Divergence,
    top_k: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Teacher]:
    """A teacher's predictions on each of (N, T) windows, on the CPU; last positions have none."""
    teachers = []
    for window in windows:
        logits = model(input_ids=window[None].to(model.device), use_cache=False).logits
        teachers.append(Teacher.of(logits[0, :-1], kind, top_k).to("cpu"))
        progress(len(teachers))
    return teachers


@torch.no_grad()
def window_divergence(
    model: PreTrainedModel,
    teachers: Sequence[Teacher],
    windows: Tensor,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """(N,) float64 mean divergence from the teacher per window, in nats per token."""
    means: list[Tensor] = []
    for teacher, window in zip(teachers, windows, strict=True):
        logits = model(input_ids=window[None].to(model.device), use_cache=False).logits
        divergences = teacher.to(logits.device).divergence(logits[0, :-1])
        means.append(divergences.double().mean().cpu())
        progress(len(means))
    return torch.stack(means)
