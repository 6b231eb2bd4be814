"""Ask heads about texts whose continuation is known, at all places that decoding could visit."""

from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.heads.drafter import HeadDrafter
from effllm.modules.heads.states import StateBatch, StateTexts
from effllm.modules.heads.target import FrozenTarget

_ASKED_TOGETHER = 4  # texts


@dataclass(frozen=True)
class Asked:
    """What heads said at n positions, and what was true there.

    Attributes:
        logits: (n, K, V) of the heads.
        labels: (n, K) columns of the true tokens; -1 where the text has ended or the token is none
            that heads can guess.
        texts: (n,) number of the text in its batch.
        places: (n, K) place of each true token in its text, which may lie beyond its end.
    """

    logits: Tensor
    labels: Tensor
    texts: Tensor
    places: Tensor


def ask(
    drafter: HeadDrafter, target: FrozenTarget, batch: StateBatch, *, whole: bool = False
) -> Asked:
    """The heads' logits from the prompt's last token on, as in decoding.

    Args:
        drafter: is asked.
        target: parts of the model that wrote the texts.
        batch: texts.
        whole: leave out positions at which the text ends before some head's token.
    """
    heads, width = drafter.heads, batch.tokens.shape[1]
    place = torch.arange(width, device=batch.lengths.device)
    needed = heads if whole else 1
    asked = (place >= batch.prompt_lengths[:, None] - 1) & (
        place + 1 + needed < batch.lengths[:, None]
    )
    texts, positions = asked.nonzero(as_tuple=True)
    # Head k at t guesses token t + 1 + k.
    places = positions[:, None] + 1 + torch.arange(1, heads + 1, device=place.device)
    inside = places < batch.lengths[texts, None]
    tokens = batch.tokens[texts[:, None], places.clamp(max=width - 1)]
    labels = torch.where(inside, target.columns(tokens), -1)
    features = drafter.adapt(batch.hidden[:, :-1], target.embed(batch.tokens[:, 1:]))
    vectors = drafter.guess(features[texts, positions])
    return Asked(target.logits(vectors), labels, texts, places)


@torch.no_grad()
def true_ranks(
    drafter: HeadDrafter,
    target: FrozenTarget,
    texts: StateTexts,
    device: str | torch.device,
    count: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Rank that each head gives to the true token, wherever all heads have one.

    Args:
        drafter: is judged, in the mode it is in.
        target: parts of the model that wrote the texts.
        texts: with hidden states.
        device: of drafter and target.
        count: the first so many texts only; all if None.

    Returns:
        (P, K) int32 ranks, 0 = first guess, ties to the lower column; V for tokens that heads
        cannot guess. And (P,) the text of each position.
    """
    ranks, owners = [], []
    stop = len(texts) if count is None else min(count, len(texts))
    for first in range(0, stop, _ASKED_TOGETHER):
        chosen = range(first, min(first + _ASKED_TOGETHER, stop))
        asked = ask(drafter, target, texts.batch(chosen, device), whole=True)
        logits, labels = asked.logits, asked.labels
        mine = logits.gather(2, labels.clamp(min=0)[..., None])
        columns = torch.arange(logits.shape[2], device=logits.device)
        ahead = (logits > mine) | ((logits == mine) & (columns < labels[..., None]))
        rank = torch.where(labels < 0, logits.shape[2], ahead.sum(dim=2))
        ranks.append(rank.to(torch.int32).cpu())
        owners.append(first + asked.texts.cpu())
    return torch.cat(ranks), torch.cat(owners)


def accuracies(ranks: Tensor) -> dict[str, float]:
    """Shares of positions, per head: true token first, among five, and first if all before were.

    Args:
        ranks: (P, K) as of `true_ranks`.

    Returns:
        `top1/1`, `top5/1`, `conditional/1`, … for heads 1 .. K; `conditional` of heads that were
        never reached is 0.
    """
    first = ranks == 0
    reached = torch.cat([torch.ones_like(first[:, :1]), first], dim=1).cumprod(dim=1).bool()
    found = {}
    for head in range(ranks.shape[1]):
        found[f"top1/{head + 1}"] = float(first[:, head].float().mean())
        found[f"top5/{head + 1}"] = float((ranks[:, head] < 5).float().mean())
        so_far = first[reached[:, head], head].float()
        found[f"conditional/{head + 1}"] = float(so_far.mean()) if len(so_far) else 0.0
    return found
