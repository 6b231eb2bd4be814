"""What heads are taught: the token of the text, and what the target thought likely there.

With p the target's law at the place of head k's token, y that token and q the head's law,

    loss = mean over positions of  sum_k decay^(k-1) (ce * -log q(y) + kd * -sum_v p(v) log q(v)).

The target's law is read from its cached hidden states, k positions further on.
"""

from torch import Tensor


def head_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor,
    teacher_rows: Tensor,
    *,
    decay: float,
    ce_weight: float,
    kd_weight: float,
) -> Tensor:
    """Loss of all heads.

    Args:
        logits: (n, K, V) of n positions.
        labels: (n, K) columns of the true tokens; -1 where there is none, which does not count.
        teacher: (m, V) laws of the target.
        teacher_rows: (n, K) row of `teacher` for every label.
        decay: weight of each head relative to the one before it.
        ce_weight: of the true token.
        kd_weight: of the target's law.

    Source: Amphista (arXiv:2406.13170) aligns with the target and models the data; its weights were
        not found. Decay: Medusa, 0.8.
    """
    total = logits.new_zeros(())
    for head in range(logits.shape[1]):
        known = labels[:, head] >= 0
        mine = logits[known, head].float()
        label, law = labels[known, head], teacher[teacher_rows[known, head]]
        # Both terms share one normalisation: sum_v p(v) = 1.
        said = ce_weight * mine.gather(1, label[:, None])[:, 0] + kd_weight * (law * mine).sum(1)
        lost = (ce_weight + kd_weight) * mine.logsumexp(dim=1) - said
        total = total + decay**head * lost.sum() / known.sum().clamp(min=1)
    return total
