"""Every outcome of every problem, whatever an arbiter decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from effllm.modules.ranges import PositiveInt
from effllm.pipelines.artifacts.arbitration import ArbitrationPair, BranchTries
from effllm.pipelines.files import write_json
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.arbitration.branches import Branches
    from effllm.modules.arbitration.exploring import Pair
    from effllm.modules.arbitration.problems import Problem


@dataclass(frozen=True, kw_only=True)
class RecordBranches(Stage):
    """Follow target and draft both ways at every mismatch, on all splits; anchors and null forks.

    Args:
        lot: problems followed together; kept whole when interrupted.
    """

    INPUTS: ClassVar = {"pair": ArbitrationPair}
    OUTPUT: ClassVar = BranchTries

    lot: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """A file of tries per split, what the draft alone gets right, and null forks."""
        import torch

        from effllm.modules.arbitration.exploring import (
            finish_alone,
            finish_null_forks,
            verdict,
        )
        from effllm.modules.arbitration.forks import Forks
        from effllm.modules.arbitration.problems import SPLITS

        stored = ctx.input("pair", ArbitrationPair)
        pair = stored.load()
        metrics: Metrics = {}
        for split in SPLITS:
            problems = stored.problems(split)
            branches = follow(ctx, pair, problems, split, self.lot)
            prompts = torch.tensor([one.prompt for one in problems])
            alone = finish_alone(pair.draft, prompts, pair.end, pair.budget)
            right = [
                verdict(one, output, pair.end) for one, output in zip(problems, alone, strict=True)
            ]
            nodes = Forks.of(branches).nodes
            beside = {
                "draft_right": torch.tensor(right),
                "null_right": finish_null_forks(pair, problems, branches, nodes),
            }
            BranchTries.write(ctx.workdir, split, branches, beside)
            metrics[f"{split}/outcomes_per_problem"] = len(branches.right) / len(branches)
        write_json(ctx.workdir / "branches.json", {"proposer": "draft"})
        return metrics


@dataclass(frozen=True, kw_only=True)
class RecordSelfBranches(Stage):
    """The same with the target's own second token in place of the draft's: self-arbitration.

    It is proposed where the target is least sure, about as often as the draft differs, which is
    counted on validation problems.

    Args:
        lot: problems followed together; kept whole when interrupted.
    """

    INPUTS: ClassVar = {"pair": ArbitrationPair, "branches": BranchTries}
    OUTPUT: ClassVar = BranchTries

    lot: PositiveInt

    def run(self, ctx: StageContext) -> Metrics:
        """A file of tries per split."""
        import torch

        from effllm.modules.arbitration.exploring import margin_for
        from effllm.modules.arbitration.problems import SPLITS
        from effllm.modules.arbitration.stepping import SecondChoice

        stored = ctx.input("pair", ArbitrationPair)
        pair, validation = stored.load(), ctx.input("branches", BranchTries).load("validation")
        target_path = validation.walk(torch.zeros(len(validation.problem), dtype=torch.bool))
        wanted = float(validation.count("decisions")[target_path].double().mean())
        prompts = torch.tensor([one.prompt for one in stored.problems("validation")])
        margin = margin_for(pair.target, prompts, pair.end, pair.budget, wanted)
        # A second copy of the target: each stepper holds the state of its rows.
        own = replace(pair, draft=SecondChoice(stored.load().target, margin))
        metrics: Metrics = {"margin": margin}
        for split in SPLITS:
            branches = follow(ctx, own, stored.problems(split), split, self.lot)
            BranchTries.write(ctx.workdir, split, branches, None)
            metrics[f"{split}/outcomes_per_problem"] = len(branches.right) / len(branches)
        write_json(ctx.workdir / "branches.json", {"proposer": "second"})
        return metrics


def follow(
    ctx: StageContext, pair: Pair, problems: list[Problem], split: str, lot: int
) -> Branches:
    """The tries of a split, lot by lot; lots that were finished before an interruption are read."""
    from effllm.modules.arbitration.branches import Branches, join
    from effllm.modules.arbitration.exploring import explore

    parts = []
    for start in range(0, len(problems), lot):
        name = f"{split}-{start}"
        tensors = ctx.load_progress(name)
        if tensors is None:
            tensors = explore(pair, problems[start : start + lot]).tensors()
            ctx.save_progress(name, tensors)
        parts.append(Branches(**tensors))
        ctx.progress(min(start + lot, len(problems)), len(problems), f"{split} problem")
    return join(parts)
