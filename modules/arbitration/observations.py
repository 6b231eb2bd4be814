"""What the arbiter sees at a mismatch: 57 numbers that verification has computed anyway.

Block A: 20 figures of both distributions. Block B: 8 of what happened before. Block C: 13 bits on
what kind of tokens the two are. Block D: the shapes of both heads, eight log-probabilities each.
Nothing else is read: no hidden state, no text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from effllm.modules.arbitration.names import FeatureSet
from effllm.modules.errors import UnsupportedModelError

_LEAST = -20.0  # log-probabilities are cut there
_FLOOR = 1e-8
_HEAD = 8  # likely tokens of block D, and of the support of divergences

DISTRIBUTIONS = (
    *("target_log_p_target", "target_log_p_draft", "target_margin"),
    *("draft_log_p_draft", "draft_log_p_target", "draft_margin"),
    *("target_entropy", "draft_entropy", "target_top3_entropy"),
    *("rank_of_draft_token", "rank_of_target_token", "target_top5_mass", "draft_top5_mass"),
    *("top5_overlap", "kl_target_draft", "kl_draft_target", "total_variation"),
    *("difference_of_maxima", "draft_token_is_second", "target_token_is_second"),
)
CONTEXT = (
    *("progress", "phase", "decisions", "accepted_share", "since_mismatch", "since_acceptance"),
    *("past_target_entropy", "past_draft_entropy"),
)
_CLASSES = ("digits", "punctuation", "space", "alphabetic", "special", "leading_space")
CLASSES = (
    *(f"target_token_{one}" for one in _CLASSES),
    *(f"draft_token_{one}" for one in _CLASSES),
    "same_surface",
)
HEADS = (
    *(f"target_head_{one}" for one in range(_HEAD)),
    *(f"draft_head_{one}" for one in range(_HEAD)),
)
FEATURES = (*DISTRIBUTIONS, *CONTEXT, *CLASSES, *HEADS)
"""Names of the 57 columns, in order."""
TARGET_ONLY = frozenset(
    {"target_log_p_target", "target_entropy", "target_top3_entropy", "target_top5_mass"}
    | {"progress", "phase", "decisions", "accepted_share", "since_mismatch", "since_acceptance"}
    | {"past_target_entropy"}
    | {name for name in (*CLASSES, *HEADS) if name.startswith("target_")}
)
"""Columns that the target alone gives, the draft's token unseen."""
DRAFT_ONLY = frozenset(
    {"draft_log_p_draft", "draft_entropy", "draft_top5_mass"}
    | {"progress", "phase", "decisions", "accepted_share", "since_mismatch", "since_acceptance"}
    | {"past_draft_entropy"}
    | {name for name in (*CLASSES, *HEADS) if name.startswith("draft_")}
)
"""Columns that the draft alone gives, the target's token unseen."""
FEATURE_SETS: dict[FeatureSet, frozenset[str]] = {
    "all": frozenset(FEATURES),
    "target": TARGET_ONLY,
    "draft": DRAFT_ONLY,
}


def column(observations: Tensor, name: str) -> Tensor:
    """(n,) one feature of (n, 57) observations."""
    return observations[:, FEATURES.index(name)]


class TokenClasses:
    """What kind of token each of a vocabulary is.

    Args:
        pieces: (V,) the text of every token.
        special: ids of tokens that are no text, such as the end.
    """

    def __init__(self, pieces: Sequence[str], special: frozenset[int]) -> None:
        self.bits = torch.tensor(
            [_classes(piece, number in special) for number, piece in enumerate(pieces)]
        )
        surfaces: dict[str, int] = {}
        self.surface = torch.tensor(
            [
                surfaces.setdefault(
                    f"special {number}" if number in special else piece.strip().casefold(),
                    len(surfaces),
                )
                for number, piece in enumerate(pieces)
            ]
        )

    def features(self, target_tokens: Tensor, draft_tokens: Tensor) -> Tensor:
        """(n, 13) block C of (n,) tokens."""
        same = self.surface[target_tokens] == self.surface[draft_tokens]
        parts = [self.bits[target_tokens], self.bits[draft_tokens], same[:, None].float()]
        return torch.cat(parts, dim=-1)


def _classes(piece: str, special: bool) -> list[float]:
    text = piece.strip()
    if special:
        return [0, 0, 0, 0, 1, 0]
    return [
        float(text.isdigit()),
        float(bool(text) and not any(one.isalnum() for one in text)),
        float(not text),
        float(text.isalpha()),
        0,
        float(piece.startswith(" ") and bool(text)),
    ]


def distribution_features(
    target: Tensor, draft: Tensor, target_tokens: Tensor, draft_tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Blocks A and D.

    Args:
        target: (n, V) logits of the target at n mismatches.
        draft: (n, V) of the draft.
        target_tokens: (n,) the target's choices.
        draft_tokens: (n,) the draft's.

    Returns:
        (n, 20) and (n, 16) float32.

    Raises:
        UnsupportedModelError: if there are fewer than eight tokens.

    Source: blocks A and D of our design; the top-3 entropy is the gate of FLy (arXiv:2511.22972).
    """
    size = target.shape[-1]
    if size < _HEAD:
        raise UnsupportedModelError(
            f"observations: a vocabulary of {size} tokens, at least {_HEAD} are needed"
        )
    log_p, log_q = (logits.float().log_softmax(dim=-1) for logits in (target, draft))
    p, q = log_p.exp(), log_q.exp()
    log_p, log_q = log_p.clamp_min(_LEAST), log_q.clamp_min(_LEAST)
    top_p, top_q = p.topk(_HEAD, dim=-1), q.topk(_HEAD, dim=-1)

    def at(values: Tensor, tokens: Tensor) -> Tensor:
        return values.gather(-1, tokens[:, None])[:, 0]

    def rank(values: Tensor, tokens: Tensor) -> Tensor:
        above = (values > values.gather(-1, tokens[:, None])).sum(dim=-1)
        return above.float().log1p() / torch.tensor(float(size)).log1p()

    p_target, p_draft = at(log_p, target_tokens), at(log_p, draft_tokens)
    q_draft, q_target = at(log_q, draft_tokens), at(log_q, target_tokens)
    top3 = top_p.values[:, :3]
    overlap = (top_p.indices[:, :5, None] == top_q.indices[:, None, :5]).sum(dim=(1, 2)) / 5
    known_p, known_q = _shared_support(p, q, top_p.indices, top_q.indices)
    ratio = known_p.log() - known_q.log()
    whole = torch.tensor(float(size)).log()
    block_a = [
        *(p_target, p_draft, p_target - p_draft, q_draft, q_target, q_draft - q_target),
        *(-(p * log_p).sum(dim=-1) / whole, -(q * log_q).sum(dim=-1) / whole),
        -torch.special.xlogy(top3, top3).sum(dim=-1),
        *(rank(p, draft_tokens), rank(q, target_tokens)),
        *(top_p.values[:, :5].sum(dim=-1), top_q.values[:, :5].sum(dim=-1), overlap),
        *((known_p * ratio).sum(dim=-1), -(known_q * ratio).sum(dim=-1)),
        (known_p - known_q).abs().sum(dim=-1) / 2,
        top_p.values[:, 0] - top_q.values[:, 0],
        (top_p.indices[:, 1] == draft_tokens).float(),
        (top_q.indices[:, 1] == target_tokens).float(),
    ]
    heads = [
        (found.values.log().clamp_min(_LEAST) - found.values[:, :1].log()).clamp_min(_LEAST)
        for found in (top_p, top_q)
    ]
    return torch.stack(block_a, dim=-1), torch.cat(heads, dim=-1)


def _shared_support(p: Tensor, q: Tensor, top_p: Tensor, top_q: Tensor) -> tuple[Tensor, Tensor]:
    """Both laws on the union of their heads and one bucket for the rest; (n, V + 1) each."""
    inside = torch.zeros_like(p, dtype=torch.bool).scatter(-1, top_p, True).scatter(-1, top_q, True)
    found = []
    for law in (p, q):
        known = law * inside
        rest = (1 - known.sum(dim=-1, keepdim=True)).clamp_min(_FLOOR)
        # Tokens outside get the same value in both, so that they add nothing to any divergence.
        found.append(torch.cat([torch.where(inside, known.clamp_min(_FLOOR), _FLOOR), rest], -1))
    return found[0], found[1]
