"""What a pass costs, how many tokens it brings, and so whether speculation pays and at which K.

With c the cost of a drafted token and v(n) that of a pass over n tokens, both in passes over one
token, and tau(K) the tokens that a round of K drafted tokens brings,

    speed over plain decoding = tau(K) / (K c + v(K + 1)).
"""

from collections.abc import Sequence
from functools import partial

import torch

from effllm.modules.inference.runner import ModelRunner
from effllm.modules.timing import seconds_of, taking_turns


def pass_seconds(
    runner: ModelRunner, widths: Sequence[int], *, context: int, repeats: int
) -> dict[int, list[float]]:
    """Seconds of passes over n tokens after a cached context, the widths taking turns.

    Args:
        runner: the model; what it had cached is lost.
        widths: token counts n; 0 is no pass: it merely reads as many bytes as one reads.
        context: cached tokens in front.
        repeats: passes of each width; one more of each warms up.

    Returns:
        n -> seconds of each repeat.
    """
    runner.reset()
    runner.advance([token % runner.vocabulary for token in range(1, context + 1)], rows=1)
    found: dict[int, list[float]] = {width: [] for width in widths}
    unread = torch.ones(
        bytes_per_pass(runner) // 4 if 0 in widths else 0, device=runner.model.device
    )

    def work(width: int) -> None:
        if width:
            runner.advance([1 + n % (runner.vocabulary - 1) for n in range(width)])
        else:
            unread.sum().item()

    for number in range(repeats + 1):
        for width in taking_turns(widths, number):
            seconds = seconds_of(partial(work, width), runner.model.device)
            runner.rollback_to(context)
            if number:
                found[width].append(seconds)
    runner.reset()
    return found


def bytes_per_pass(runner: ModelRunner) -> int:
    """Bytes of weights that a pass over one token reads: all but the rows of the embedding."""
    model = runner.model
    table = model.get_input_embeddings().weight
    tied = table is model.get_output_embeddings().weight
    weights = {id(one): one for one in model.parameters() if tied or one is not table}
    return sum(one.numel() * one.element_size() for one in weights.values())


def tokens_per_round(accepted: Sequence[int], drafted: Sequence[int], count: int) -> float:
    """tau(K): mean tokens of a round if only the first K of its drafted tokens were judged.

    Args:
        accepted: kept tokens of each recorded round.
        drafted: drafted tokens of each recorded round, at least `count` where the drafter had them.
        count: K.

    Exact within a round; rounds would start elsewhere, which is neglected.
    """
    if not accepted:
        return 1.0
    kept = [min(one, count, width) for one, width in zip(accepted, drafted, strict=True)]
    return 1.0 + sum(kept) / len(kept)


def speed_over_plain(tokens: float, drafted: float, draft_cost: float, pass_cost: float) -> float:
    """Tokens over cost, tau / (K c + v(K + 1)), the costs in passes over one token."""
    return tokens / (drafted * draft_cost + pass_cost)
