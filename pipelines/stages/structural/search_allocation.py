"""Search for the level of every sub-layer of a supernet."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.errors import DataError
from effllm.modules.ranges import Dtype, PositiveInt, Seed
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Windows
from effllm.pipelines.artifacts.structural import Allocation, SupernetFiles
from effllm.pipelines.files import replace_synced, write_json
from effllm.pipelines.stage import Metrics, Stage, StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.evaluation.divergence import Divergence
    from effllm.modules.structural.budgets import BudgetFactory
    from effllm.modules.structural.fitness import LevelModel
    from effllm.modules.structural.search import Budget, Evolution, State


@dataclass(frozen=True, kw_only=True)
class SearchAllocation(Stage):
    """Evolution over levels, resumable after every generation.

    Args:
        evolution: the search.
        budget: what every candidate keeps.
        divergence: fitness, KL from the dense model over all tokens or the likeliest.
        top_k: likeliest tokens that count.
        resume_passes: start forward passes at the first changed block; the same values with fewer
            block evaluations, for the memory of the parent's hidden states.
        dtype: of the forward passes.
        micro_batch_size: windows per forward pass.
        seed: of moves and of the text that is drawn.
    """

    VERSION: ClassVar[int] = 3  # 3: budgets count biases and norms
    INPUTS: ClassVar = {"model": Checkpoint, "supernet": SupernetFiles, "windows": Windows}
    OUTPUT: ClassVar = Allocation
    VOLATILE: ClassVar = frozenset({"resume_passes", "micro_batch_size"})

    evolution: Evolution
    budget: BudgetFactory
    divergence: Divergence
    top_k: PositiveInt
    resume_passes: bool
    dtype: Dtype
    micro_batch_size: PositiveInt
    seed: Seed

    def run(self, ctx: StageContext) -> Metrics:
        """`allocation.json`, and `history.jsonl` with one generation per line."""
        from effllm.modules.structural.fitness import KlFitness, LevelModel

        supernet = ctx.input("supernet", SupernetFiles).open()
        model = ctx.input("model", Checkpoint).load_model(self.dtype, ctx.device)
        windows = ctx.input("windows", Windows).token_ids()
        self._check(windows)
        levels = LevelModel(model, supernet)
        space = levels.space
        centre = space.state([supernet.centre[one.name] for one in supernet.layers])
        budget = self._budget(ctx, levels, centre)
        fitness = KlFitness(
            levels,
            kind=self.divergence,
            top_k=self.top_k,
            resume=self.resume_passes,
            batch_size=self.micro_batch_size,
        )
        rows = ctx.load_rows()
        parent: State = tuple(rows[-1]["parent"]) if rows else centre
        text = -1
        for generation in range(len(rows), self.evolution.steps):
            if self._settled(rows):
                break
            started, before = time.perf_counter(), fitness.effort
            if generation // self.evolution.keep_batches != text:
                text = generation // self.evolution.keep_batches
                fitness.use_text(self._draw(ctx, windows, text))
            fitness.start_from(parent)
            winner, judged = self.evolution.step(
                generation,
                parent,
                space,
                budget,
                fitness,
                ctx.generator(f"moves of generation {generation}"),
            )
            rows.append(
                {
                    "generation": generation,
                    "parent": list(winner),
                    "changed": winner != parent,
                    "fitness": judged[-1][winner],
                    "parent_fitness": judged[-1][parent],
                    "guided": generation < self.evolution.guided,
                    "text": text,
                    "candidates": [len(one) for one in judged],
                    "best": [min(one.values(), default=None) for one in judged],
                    "effort": [
                        one - other for one, other in zip(fitness.effort, before, strict=True)
                    ],
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
            parent = winner
            ctx.save_rows(rows)
            ctx.log({"fitness": judged[-1][winner]}, generation)
            ctx.progress(generation + 1, self.evolution.steps, "generation")
        # What an interruption changes, counts and times, is no part of the result.
        effort = ("seconds", "effort")
        history = [{k: v for k, v in row.items() if k not in effort} for row in rows]
        removed = dict(
            zip((one.name for one in supernet.layers), space.removed(parent), strict=True)
        )
        Allocation.write(ctx.workdir, supernet, removed, history)
        done, full, remembered = (sum(row["effort"][one] for row in rows) for one in range(3))
        return {
            "generations": len(rows),
            "improvements": sum(row["changed"] for row in rows),
            "fitness_first": rows[0]["parent_fitness"] if rows else None,
            "fitness_last": rows[-1]["fitness"] if rows else None,
            "block_evaluations": done,
            "full_block_evaluations": full,
            "remembered_block_evaluations": remembered,
            "fewer_block_evaluations": full / done if done else None,
            "fewer_by_late_starts": (full - remembered) / done if done else None,
            "search_seconds": sum(row["seconds"] for row in rows),
        }

    def _budget(self, ctx: StageContext, levels: LevelModel, centre: State) -> Budget:
        """The budget; a measured cost table is kept, so that a resumed search has the same."""
        from effllm.modules.structural.search import CostBudget

        file = ctx.progress_dir / "costs.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        budget = self.budget.build(levels, centre, known)
        if known is None and isinstance(budget, CostBudget):
            partial = file.with_suffix(".partial")
            write_json(partial, budget.costs)
            replace_synced(partial, file)  # the whole table or none
        return budget

    def _settled(self, rows: list[dict[str, Any]]) -> bool:
        """Whether patience has run out."""
        patience = self.evolution.patience
        return (
            bool(patience)
            and len(rows) >= patience
            and not any(row["changed"] for row in rows[-patience:])
        )

    def _check(self, windows: Tensor) -> None:
        most = max(self.evolution.stage_tokens)
        if windows.numel() < most:
            raise DataError(
                f"search_allocation: a stage judges on {most} tokens, the text has "
                f"{windows.numel()}; give more windows or smaller evolution.stage_tokens"
            )

    def _draw(self, ctx: StageContext, windows: Tensor, text: int) -> list[Tensor]:
        """Windows for each stage; a stage shorter than a window sees the beginning of one."""
        import torch

        drawn = []
        for stage, tokens in enumerate(self.evolution.stage_tokens):
            generator = ctx.generator(f"text {text} of stage {stage}")
            order = torch.randperm(len(windows), generator=generator)
            count = max(1, tokens // windows.shape[1])
            drawn.append(windows[order[:count]][:, :tokens])
        return drawn
