"""Judge trained heads on test texts: each one's accuracy, and tokens per pass with equal trees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from effllm.modules.ranges import NonEmpty, PositiveInt
from effllm.pipelines.artifacts.heads import Heads, HeadScores, HiddenStates
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class EvaluateHeads(Stage):
    """Trees are chosen on held-out texts, tokens per pass counted on test texts.

    Every position that decoding could visit counts once; decoding visits those after a pass's last
    token alone, so that its own figure may differ a little.

    Args:
        nodes: sizes of trees, the root not counted.
        widest: guesses of each head that a tree may take.
    """

    INPUTS: ClassVar = {"heads": Heads, "states": HiddenStates}
    OUTPUT: ClassVar = HeadScores

    nodes: NonEmpty[PositiveInt]
    widest: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """`texts.jsonl`, `trees.json`, `subject.json`."""
        import numpy as np
        import torch

        from effllm.modules.heads.asking import accuracies, true_ranks
        from effllm.modules.heads.target import FrozenTarget
        from effllm.modules.heads.trees import accepted_depths, optimal_tree

        heads, states = ctx.input("heads", Heads), ctx.input("states", HiddenStates)
        heads.require_target(states.target)
        chosen, _ = heads.ranks()
        trees = {count: optimal_tree(chosen, count, self.widest) for count in self.nodes}
        drafter, token_ids = heads.load()
        target = FrozenTarget.of(*states.weights(), token_ids).to(ctx.device)
        texts = states.texts()
        ranks, owners = true_ranks(drafter.to(ctx.device), target, texts, ctx.device)
        accepted = {count: accepted_depths(ranks, tree) for count, tree in trees.items()}
        rows = []
        for text in torch.unique(owners).tolist():
            mine = owners == text
            rows.append(
                {
                    "text": text,
                    "positions": int(mine.sum()),
                    "top1": (ranks[mine] == 0).sum(dim=0).tolist(),
                    "top5": (ranks[mine] < 5).sum(dim=0).tolist(),
                    "accepted": {
                        str(count): int(found[mine.numpy()].sum())
                        for count, found in accepted.items()
                    },
                }
            )
        HeadScores.write(ctx.workdir, heads.about, trees, rows)
        known = ranks < len(token_ids)
        return {
            **{f"test/{key}": value for key, value in accuracies(ranks).items()},
            **{f"test/tau/{count}": 1 + float(np.mean(one)) for count, one in accepted.items()},
            **{
                f"heldout/tau/{count}": 1 + float(np.mean(accepted_depths(chosen, tree)))
                for count, tree in trees.items()
            },
            "test/positions": len(ranks),
            "test/inside_vocabulary": float(known.float().mean()),
        }
