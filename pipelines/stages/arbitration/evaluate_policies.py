"""Every rule on every test problem: the verdicts that all statistics stand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effllm.modules.errors import GraphError
from effllm.modules.ranges import NonNegativeInt, PositiveInt
from effllm.pipelines.artifacts.arbitration import (
    Arbiters,
    ArbitrationPair,
    ArbitrationVerdicts,
    BranchTries,
)
from effllm.pipelines.stage import Many, Metrics, Stage, StageContext

if TYPE_CHECKING:
    from effllm.modules.arbitration.branches import Branches
    from effllm.modules.arbitration.judging import Arm
    from effllm.modules.arbitration.problems import Problem


@dataclass(frozen=True, kw_only=True)
class EvaluatePolicies(Stage):
    """Choose thresholds on validation problems, then look at the test problems once.

    Args:
        candidates: thresholds that are tried for each rule.
        texts: problems that are shown, where the shipped policy and the target differ.
    """

    INPUTS: ClassVar = {
        "pair": ArbitrationPair,
        "branches": BranchTries,
        "self_branches": BranchTries,
        "arbiters": Many(Arbiters),
    }
    OUTPUT: ClassVar = ArbitrationVerdicts

    candidates: PositiveInt
    texts: NonNegativeInt

    def run(self, ctx: StageContext) -> Metrics:
        """`rules.json`, `verdicts.safetensors` and `figures.json`."""
        from effllm.modules.arbitration.judging import (
            bounds,
            frontier,
            judge,
            leaning,
            reliability,
            ship,
        )
        from effllm.modules.arbitration.rules import ALWAYS, NEVER, ONE_NUMBER, AtRandom

        pair, tries = ctx.input("pair", ArbitrationPair), ctx.input("branches", BranchTries)
        ours = tries.load("validation"), tries.load("test")
        own = ctx.input("self_branches", BranchTries)
        theirs = own.load("validation"), own.load("test")
        margin = ONE_NUMBER["margin"]
        target = judge("target", margin, *ours, candidates=self.candidates, threshold=NEVER)
        arms = [
            target,
            judge("always_draft", margin, *ours, candidates=self.candidates, threshold=ALWAYS),
        ]
        arms += [
            judge(name, score, *ours, candidates=self.candidates)
            for name, score in ONE_NUMBER.items()
        ]
        by_rule: dict[str, dict[int, Arm]] = {}
        policies = {}
        for arbiters in ctx.input_list("arbiters", Arbiters):
            rule = arbiters.rule
            if rule in by_rule:
                raise GraphError(f"two sets of arbiters are both {rule!r}")
            problems = theirs if arbiters.info["proposer"] == "second" else ours
            policies[rule] = arbiters.policies()
            by_rule[rule] = {
                seed: judge(rule, policy, *problems, candidates=self.candidates, seed=seed)
                for seed, policy in policies[rule].items()
            }
        missing = {"warm", "rl", "self_rl"} - by_rule.keys()
        if missing:
            raise GraphError(
                f"no arbiters are {', '.join(sorted(missing))}; the claim needs them as inputs"
            )
        seeds = list(by_rule["rl"])
        closed = not all(
            arbiters.info["gate_open"]
            for arbiters in ctx.input_list("arbiters", Arbiters)
            if arbiters.rule == "rl"
        )
        shipped = {
            seed: ship(
                "cospec",
                [target] if closed else [by_rule["warm"][seed], by_rule["rl"][seed]],
                target,
            )
            for seed in seeds
        }
        by_rule["cospec"] = {
            seed: type(arm)("cospec", seed, arm.point, arm.columns) for seed, arm in shipped.items()
        }
        by_rule["random"] = {
            seed: judge(
                "random",
                AtRandom(rate=by_rule["cospec"][seed].point.rate, seed=seed),
                *ours,
                candidates=self.candidates,
                seed=seed,
                threshold=0.5,
            )
            for seed in seeds
        }
        arms += [arm for found in by_rule.values() for arm in found.values()]
        columns = {arm.key: arm.columns for arm in arms}
        columns |= {name: {"right": right.byte()} for name, right in bounds(ours[1]).items()}
        columns["draft"] = {"right": tries.beside("test")["draft_right"].byte()}
        first, test = policies["rl"][seeds[0]], ours[1]
        scores = {name: score(test.observations) for name, score in ONE_NUMBER.items()}
        scores |= {
            rule: found[seeds[0]](test.observations)
            for rule, found in policies.items()
            if rule in ("rl", "rl_speed", "warm")
        }
        point = by_rule["rl"][seeds[0]].point
        figures: dict[str, Any] = {
            "gate_open": not closed,
            "shipped": {str(seed): self._what(seed, by_rule) for seed in seeds},
            "frontiers": {
                name: frontier(test, found, pair.costs, self.candidates)
                for name, found in scores.items()
            },
            "leaning": leaning(first, ours[0], point.threshold),
            "reliability": reliability(first, test),
            "texts": self._texts(pair.problems("test"), pair.info["pieces"], test, first, point),
        }
        ArbitrationVerdicts.write(ctx.workdir, [arm.described for arm in arms], columns, figures)
        return {
            "target": float(target.columns["right"].double().mean()),
            "cospec": sum(float(a.columns["right"].double().mean()) for a in shipped.values())
            / len(shipped),
        }

    @staticmethod
    def _what(seed: int, by_rule: dict[str, dict[int, Arm]]) -> str:
        """Which candidate a seed ships."""
        point = by_rule["cospec"][seed].point
        same = [rule for rule in ("warm", "rl") if by_rule[rule][seed].point == point]
        return same[-1] if same and point.bound > 0 else "target"

    def _texts(
        self, problems: list[Problem], pieces: list[str], test: Branches, policy: Any, point: Any
    ) -> list[dict[str, Any]]:
        """Problems whose verdict the policy changes, won and lost ones in turn."""
        import torch

        accept = policy(test.observations).double() > point.threshold
        after, before = test.walk(accept), test.walk(torch.zeros_like(accept))
        right, was = test.right[after], test.right[before]
        won, lost = (right & ~was).nonzero()[:, 0], (was & ~right).nonzero()[:, 0]
        half = self.texts // 2
        return [
            {
                "id": problems[number].id,
                "prompt": _text(problems[number].prompt, pieces),
                "target": _text(test.outputs[before[number]].tolist(), pieces),
                "policy": _text(test.outputs[after[number]].tolist(), pieces),
                "answer": _text([one[0] if one else 0 for one in problems[number].answer], pieces),
                "won": bool(right[number]),
            }
            for number in [*won[: self.texts - half].tolist(), *lost[:half].tolist()]
        ]


def _text(tokens: Any, pieces: list[str]) -> str:
    return "".join(pieces[token] for token in tokens).translate({0: None, 1: None})
