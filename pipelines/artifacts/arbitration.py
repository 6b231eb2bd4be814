"""Pairs of models, tries of their problems, arbiters, and verdicts on every test problem."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.files import write_json, write_rows

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.arbitration.branches import Branches
    from effllm.modules.arbitration.cost_model import CostModel
    from effllm.modules.arbitration.exploring import Pair
    from effllm.modules.arbitration.policy import Policy
    from effllm.modules.arbitration.problems import Problem

_PROBLEMS = "problems.jsonl"
_TABLES = "tables.safetensors"
_WORDS = {"never": math.inf, "always": -math.inf}  # thresholds without end, which JSON has not


class ArbitrationPair(Artifact):
    """Two models that speculate together, and problems for policies.

    `pair.json`, `problems.jsonl`, and either `target/` and `draft/` or the tables of both.
    """

    kind = "arbitration pair"

    @staticmethod
    def write(
        folder: Path,
        *,
        info: Mapping[str, Any],
        problems: Sequence[Problem],
        tables: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the files of a pair; models that are no tables are saved by the caller."""
        from dataclasses import asdict

        from safetensors.torch import save_file

        write_json(folder / "pair.json", dict(info))
        write_rows(folder / _PROBLEMS, (asdict(problem) for problem in problems))
        if tables is not None:
            save_file(dict(tables), folder / _TABLES)

    @property
    def info(self) -> dict[str, Any]:
        """Name, costs, K, limits, pieces of the vocabulary, and what is known of the best rule."""
        return dict(self.read_json("pair.json"))

    @property
    def costs(self) -> CostModel:
        """Constants of the predicted cost."""
        from effllm.modules.arbitration.cost_model import CostModel

        return CostModel(**self.info["costs"])

    def problems(self, split: str) -> list[Problem]:
        """All problems of a split."""
        from effllm.modules.arbitration.problems import Problem

        return [
            Problem(
                row["id"],
                row["split"],
                tuple(row["prompt"]),
                tuple(tuple(allowed) for allowed in row["answer"]),
                row["skills"],
            )
            for row in self.read_rows(_PROBLEMS)
            if row["split"] == split
        ]

    @property
    def has_models(self) -> bool:
        """Whether it is of language models, not of tables."""
        return not (self.path / _TABLES).is_file()

    def load(self) -> Pair:
        """Both models, ready to be followed."""
        from effllm.modules.arbitration.exploring import Pair
        from effllm.modules.arbitration.observations import TokenClasses
        from effllm.modules.arbitration.stepping import ModelStepper, Stepper

        info = self.info
        target: Stepper
        draft: Stepper
        if not self.has_models:
            from safetensors.torch import load_file

            from effllm.modules.arbitration.fake import TableStepper

            tables = load_file(self.path / _TABLES)
            target, draft = TableStepper(tables["target"]), TableStepper(tables["draft"])
        else:
            from transformers import AutoModelForCausalLM

            target, draft = (
                ModelStepper(AutoModelForCausalLM.from_pretrained(self.path / name))
                for name in ("target", "draft")
            )
        return Pair(
            target=target,
            draft=draft,
            classes=TokenClasses(info["pieces"], frozenset(info["special"])),
            end=info["end"],
            block=info["costs"]["block"],
            decisions=info["decisions"],
            budget=info["budget"],
        )


class BranchTries(Artifact):
    """All outcomes of all problems, a file per split; verdicts of the draft alone; null forks."""

    kind = "branch tries"

    @staticmethod
    def write(
        folder: Path, split: str, branches: Branches, beside: Mapping[str, Tensor] | None
    ) -> None:
        """Write the tries of one split, and what was measured beside them."""
        from safetensors.torch import save_file

        save_file(
            {name: value.contiguous() for name, value in branches.tensors().items()},
            folder / f"{split}.safetensors",
        )
        if beside is not None:
            save_file(dict(beside), folder / f"{split}-beside.safetensors")

    @property
    def proposer(self) -> str:
        """`draft`, or `second` where the target's own second token was proposed."""
        return str(self.read_json("branches.json")["proposer"])

    def load(self, split: str) -> Branches:
        """The tries of a split."""
        from safetensors.torch import load_file

        from effllm.modules.arbitration.branches import Branches

        return Branches(**load_file(self.path / f"{split}.safetensors"))

    def beside(self, split: str) -> dict[str, Tensor]:
        """`draft_right` (N,) of the draft alone, `null_right` (f,) after null forks; bool."""
        from safetensors.torch import load_file

        return load_file(self.path / f"{split}-beside.safetensors")


class Headroom(Artifact):
    """What arbitration could gain on validation problems, and whether training may begin."""

    kind = "headroom"

    @staticmethod
    def write(folder: Path, figures: Mapping[str, Any]) -> None:
        """Write the file of measures."""
        write_json(folder / "headroom.json", figures)

    @property
    def figures(self) -> dict[str, Any]:
        """Measures with intervals, cells, areas under curves, and the gate."""
        return dict(self.read_json("headroom.json"))


class Arbiters(Artifact):
    """Policies of several seeds, trained alike."""

    kind = "arbiters"

    @staticmethod
    def write(folder: Path, info: Mapping[str, Any], policies: Mapping[int, Policy]) -> None:
        """Write the files of arbiters; curves are written where training puts them."""
        from safetensors.torch import save_file

        write_json(folder / "arbiters.json", dict(info))
        for seed, policy in policies.items():
            save_file(policy.state_dict(), folder / f"policy-{seed}.safetensors")

    @property
    def info(self) -> dict[str, Any]:
        """How they were trained, and on what: trainer, network, features, labels, seeds."""
        return dict(self.read_json("arbiters.json"))

    @property
    def rule(self) -> str:
        """Short name, from how they were trained."""
        info = self.info
        if info["labels"] == "same_answer":
            name = "autojudge"
        elif info["labels"] == "shuffled":
            name = "shuffled"
        else:
            name = "rl" if info["trainer"] == "reinforcement" else "warm"
        name += "_linear" * (info["network"] == "linear")
        name += f"_{info['features']}" * (info["features"] != "all")
        name += "_speed" * (info["speed_weight"] > 0)
        if "advantage" in info:  # another than the usual one
            name += f"_{info['advantage']}"
        return "self_" * (info["proposer"] == "second") + name

    def policies(self) -> dict[int, Policy]:
        """Seed -> policy."""
        from safetensors.torch import load_file

        from effllm.modules.arbitration.policy import Policy

        info, found = self.info, {}
        for seed in info["seeds"]:
            policy = Policy(info["network"], frozenset(info["used"]), width=info["width"])
            policy.load_state_dict(load_file(self.path / f"policy-{seed}.safetensors"))
            found[seed] = policy.eval().requires_grad_(False)
        return found

    def curve(self, seed: int) -> Path:
        """The training curve of one seed: step, name, value."""
        return self.path / f"curve-{seed}.csv"


@dataclass(frozen=True)
class Shipped:
    """A policy at its operating point.

    Attributes:
        rule: `rl` or `warm`, by which it was trained; `target` if none may be shipped.
        seed: of the policy.
        threshold: of its scores.
    """

    rule: str
    seed: int
    threshold: float


class ArbitrationSpeeds(Artifact):
    """Times of decoding: `speeds.jsonl`, a row for each test problem and arm."""

    kind = "arbitration speeds"

    @staticmethod
    def write(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the file of rows: set, id, correct, tokens, seconds, decide_seconds."""
        write_rows(folder / "speeds.jsonl", rows)

    def rows(self) -> list[dict[str, Any]]:
        """All of them."""
        return self.read_rows("speeds.jsonl")


class ArbitrationVerdicts(Artifact):
    """For every rule and every test problem: right or wrong, and exact counts.

    `rules.json` has an entry per arm, a rule with a seed; `verdicts.safetensors` its columns.
    """

    kind = "arbitration verdicts"

    @staticmethod
    def write(
        folder: Path,
        arms: Sequence[Mapping[str, Any]],
        columns: Mapping[str, Mapping[str, Tensor]],
        figures: Mapping[str, Any],
    ) -> None:
        """Write the files of verdicts."""
        from safetensors.torch import save_file

        write_json(folder / "rules.json", {"arms": list(arms)})
        write_json(folder / "figures.json", dict(figures))
        save_file(
            {
                f"{key}/{name}": values.clone()  # what is shipped is an arm's, too
                for key, found in columns.items()
                for name, values in found.items()
            },
            folder / "verdicts.safetensors",
        )

    @property
    def rules(self) -> list[dict[str, Any]]:
        """Arms: key, rule, seed, group, operating point on validation."""
        return list(self.read_json("rules.json")["arms"])

    @property
    def shipped(self) -> Shipped:
        """Of all seeds, what is shipped with the highest lower bound of its gain on validation."""
        mine = [arm for arm in self.rules if arm["rule"] == "cospec"]
        best = max(mine, key=lambda arm: float(arm["validation"]["bound"]))
        threshold = best["validation"]["threshold"]
        return Shipped(
            rule=self.figures["shipped"][str(best["seed"])],
            seed=best["seed"],
            threshold=_WORDS.get(threshold, threshold),
        )

    @property
    def figures(self) -> dict[str, Any]:
        """Frontiers, what policies lean on, calibration, texts."""
        return dict(self.read_json("figures.json"))

    def columns(self) -> dict[str, dict[str, Tensor]]:
        """Arm's key -> `right` and counts, (N,) each."""
        from safetensors.torch import load_file

        found: dict[str, dict[str, Tensor]] = {}
        for name, values in load_file(self.path / "verdicts.safetensors").items():
            key, _, column = name.rpartition("/")
            found.setdefault(key, {})[column] = values
        return found
