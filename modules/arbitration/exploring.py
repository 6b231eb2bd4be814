"""Follow target and draft in lockstep, both ways at every mismatch.

All rows read one token at a time, so nothing is ever rolled back. What is emitted depends on the
block structure of speculation through the phase only: after K kept drafts the target's own token
comes (bonus), after a rejection a block begins anew. The first token is the target's, too, since it
comes with the prompt, and so is the last one of the budget. Rows that share problem and actions are
one row until they part, and the counts are those of the decoding loop (`engine.py`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from effllm.modules.arbitration.branches import Branches
from effllm.modules.arbitration.observations import TokenClasses, distribution_features
from effllm.modules.arbitration.problems import Problem
from effllm.modules.arbitration.stepping import Stepper

_WINDOW = 8  # decisions, of the moving averages


@dataclass(frozen=True)
class Pair:
    """Two models and how they speculate.

    Attributes:
        target: verifies.
        draft: proposes.
        classes: of the tokens.
        end: id of the token that ends an output.
        block: K, drafted tokens of a block.
        decisions: mismatches of a problem that are arbitrated; later ones get the target's token.
        budget: tokens of an output, its end included.
    """

    target: Stepper
    draft: Stepper
    classes: TokenClasses
    end: int
    block: int
    decisions: int
    budget: int


@dataclass
class _Rows:
    """State of R rows; every field is a tensor with a row each."""

    problem: Tensor
    parent: Tensor  # node decided last, -1 before the first
    action: Tensor  # taken there
    phase: Tensor
    blocks: Tensor
    calls: Tensor
    asked: Tensor  # whether this block has asked the policy
    decisions: Tensor
    accepted: Tensor
    since_mismatch: Tensor
    since_acceptance: Tensor
    target_entropy: Tensor
    draft_entropy: Tensor
    output: Tensor

    @staticmethod
    def new(count: int, block: int, budget: int) -> "_Rows":
        zeros = torch.zeros(count, dtype=torch.long)
        return _Rows(
            problem=torch.arange(count),
            parent=zeros - 1,
            action=zeros.clone(),
            phase=zeros + block,
            blocks=zeros.clone(),
            calls=zeros.clone(),
            asked=zeros.bool(),
            decisions=zeros.clone(),
            accepted=zeros.clone(),
            since_mismatch=zeros.clone(),
            since_acceptance=zeros.clone(),
            target_entropy=zeros.float(),
            draft_entropy=zeros.float(),
            output=torch.zeros(count, budget, dtype=torch.long),
        )

    def take(self, rows: Tensor) -> "_Rows":
        return _Rows(**{name: value[rows] for name, value in vars(self).items()})


def explore(pair: Pair, problems: list[Problem]) -> Branches:
    """The whole tries of problems whose prompts have one length.

    Raises:
        ValueError: for prompts of several lengths.
    """
    if len({len(one.prompt) for one in problems}) != 1:
        raise ValueError("prompts explored together must have one length")
    prompts = torch.tensor([one.prompt for one in problems])
    rows = _Rows.new(len(problems), pair.block, pair.budget)
    target, draft = pair.target.begin(prompts), pair.draft.begin(prompts)
    grown = _Growing(len(problems), pair)
    for step in range(pair.budget):
        ours, theirs = _choices(target), _choices(draft)
        last = step + 1 == pair.budget
        bonus = (rows.phase == pair.block) | last
        mismatch = ~bonus & (ours != theirs)
        asked = mismatch & (rows.decisions < pair.decisions)
        rows = grown.decide(rows, asked, step, (ours, theirs), (target, draft))
        kept = torch.arange(len(ours))
        doubled = torch.cat([kept, asked.nonzero()[:, 0]])  # the second of two takes the draft's
        rows = rows.take(doubled)
        drafted = torch.arange(len(doubled)) >= len(ours)
        rows.action[drafted] = 1
        rejected = mismatch[doubled] & ~drafted
        token = torch.where(drafted, theirs[doubled], ours[doubled])
        rows.output[:, step] = token
        rows.accepted += drafted
        rows.since_mismatch = torch.where(mismatch[doubled], 0, rows.since_mismatch + 1)
        rows.since_acceptance = torch.where(drafted, 0, rows.since_acceptance + 1)
        over = (token == pair.end) | last
        closed = bonus[doubled] | rejected | over
        rows.blocks += closed & (step > 0)  # the first token comes with the prompt
        rows.calls += closed & rows.asked
        rows.asked &= ~closed
        rows.phase = torch.where(closed, 0, rows.phase + 1)
        grown.finish(rows.take(over.nonzero()[:, 0]), problems, step + 1)
        alive = (~over).nonzero()[:, 0]
        if not len(alive):
            break
        rows = rows.take(alive)
        target = pair.target.step(doubled[alive], token[alive])
        draft = pair.draft.step(doubled[alive], token[alive])
    return grown.branches()


def finish_alone(stepper: Stepper, prompts: Tensor, end: int, budget: int) -> Tensor:
    """(R, budget) greedy outputs of one model after (R, T) prompts; 0 after the end."""
    outputs = torch.zeros(len(prompts), budget, dtype=torch.long)
    rows = torch.arange(len(prompts))
    logits = stepper.begin(prompts)
    for step in range(budget):
        token = _choices(logits)
        outputs[rows, step] = token
        alive = (token != end).nonzero()[:, 0]
        if not len(alive) or step + 1 == budget:
            break
        rows = rows[alive]
        logits = stepper.step(alive, token[alive])
    return outputs


def verdict(problem: Problem, output: Tensor, end: int) -> bool:
    """Whether a (T,) output has ended and is right."""
    tokens = output.tolist()
    return end in tokens and problem.right(tokens[: tokens.index(end)])


def finish_null_forks(
    pair: Pair, problems: list[Problem], branches: Branches, nodes: Tensor
) -> Tensor:
    """Whether the target is right after its own best other token at (f,) nodes on its path.

    The draft has no part in it: what such a fork wins is luck, or the target's own second thought.

    Returns:
        (f,) bool.
    """
    leaves = branches.walk(torch.zeros(len(branches.problem), dtype=torch.bool))
    right = torch.zeros(len(nodes), dtype=torch.bool)
    for position in branches.position[nodes].unique().tolist():
        at = (branches.position[nodes] == position).nonzero()[:, 0]
        owners = branches.problem[nodes[at]]
        prompts = torch.tensor([problems[number].prompt for number in owners.tolist()])
        before = branches.outputs[leaves[owners], :position]
        begun = torch.cat([before, branches.tokens[nodes[at], 2:]], dim=1)
        rest = pair.budget - position - 1
        ended = begun[:, -1] == pair.end
        if rest:
            found = finish_alone(pair.target, torch.cat([prompts, begun], dim=1), pair.end, rest)
            found[ended] = 0
            begun = torch.cat([begun, found], dim=1)
        for place, number, output in zip(at.tolist(), owners.tolist(), begun, strict=True):
            right[place] = verdict(problems[number], output, pair.end)
    return right


def margin_for(
    target: Stepper, prompts: Tensor, end: int, budget: int, per_problem: float
) -> float:
    """Margin at which the target would doubt its own token so often, in nats.

    Args:
        target: the model, followed greedily.
        prompts: (R, T) of validation problems.
        end: id of the token that ends an output.
        budget: tokens of an output.
        per_problem: wanted doubts of an output; those at a bonus count, too.
    """
    margins, logits = [], target.begin(prompts)
    for step in range(budget):
        best = logits.topk(2, dim=-1).values
        if 0 < step < budget - 1:  # the others are the target's in any case
            margins.append(best[:, 0] - best[:, 1])
        token = _choices(logits)
        alive = (token != end).nonzero()[:, 0]
        if not len(alive) or step + 1 == budget:
            break
        logits = target.step(alive, token[alive])
    found = torch.cat(margins).double()
    wanted = min(1.0, per_problem * len(prompts) / len(found))
    return float(found.quantile(wanted))


def _choices(logits: Tensor) -> Tensor:
    """(R,) the most likely tokens, the lowest id of ties."""
    return torch.from_numpy(logits.numpy().argmax(axis=-1))


class _Growing:
    """Nodes and leaves as they are found."""

    def __init__(self, problems: int, pair: Pair) -> None:
        self.pair = pair
        self.count = 0
        self.nodes: list[dict[str, Tensor]] = []
        self.leaves: list[dict[str, Tensor]] = []
        self.problems = problems
        self.answers: dict[tuple[int, tuple[int, ...]], int] = {}

    def decide(
        self,
        rows: _Rows,
        asked: Tensor,
        step: int,
        choices: tuple[Tensor, Tensor],
        logits: tuple[Tensor, Tensor],
    ) -> _Rows:
        """Note a node for every row that asks; rows then know it as their parent."""
        at = asked.nonzero()[:, 0]
        here = rows.take(at)
        ours, theirs = (one[at] for one in choices)
        block_a, block_d = distribution_features(logits[0][at], logits[1][at], ours, theirs)
        both = torch.stack([ours, theirs], dim=-1)
        spare = _choices(logits[0][at].scatter(-1, both, -torch.inf))
        numbers = self.count + torch.arange(len(at))
        self.count += len(at)
        context = [
            torch.full((len(at),), step / self.pair.budget),
            here.phase / max(1, self.pair.block),
            here.decisions.float().log1p(),
            here.accepted / here.decisions.clamp(min=1),
            here.since_mismatch.float().log1p(),
            here.since_acceptance.float().log1p(),
            here.target_entropy,
            here.draft_entropy,
        ]
        block_b = torch.stack(context, dim=-1)
        block_c = self.pair.classes.features(ours, theirs)
        self.nodes.append(
            {
                "number": numbers,
                "problem": here.problem,
                "parent": here.parent,
                "action": here.action,
                "depth": here.decisions,
                "observations": torch.cat([block_a, block_b, block_c, block_d], dim=-1),
                "tokens": torch.cat([both, spare[:, None]], dim=-1),
                "position": torch.full((len(at),), step),
            }
        )
        first = here.decisions == 0
        weight = torch.where(first, 1.0, 2 / (_WINDOW + 1))
        for name, found in (("target_entropy", 6), ("draft_entropy", 7)):
            old = getattr(here, name)
            getattr(rows, name)[at] = old + weight * (block_a[:, found] - old)
        rows.parent[at], rows.action[at] = numbers, 0
        rows.decisions[at] += 1
        rows.asked[at] = True
        return rows

    def finish(self, rows: _Rows, problems: list[Problem], length: int) -> None:
        """Note a leaf for every row that ended after `length` tokens."""
        outputs = rows.output[:, :length].tolist()
        ended = [output[-1] == self.pair.end for output in outputs]
        right = [
            complete and problems[number].right(output[:-1])
            for number, output, complete in zip(rows.problem.tolist(), outputs, ended, strict=True)
        ]
        answer = [
            self.answers.setdefault((number, problems[number].reading(output)), len(self.answers))
            for number, output in zip(rows.problem.tolist(), outputs, strict=True)
        ]
        counts = [
            *(rows.blocks, rows.calls, torch.full_like(rows.blocks, length)),
            *(rows.decisions, rows.accepted, ~torch.tensor(ended, dtype=torch.bool)),
        ]
        self.leaves.append(
            {
                "problem": rows.problem,
                "parent": rows.parent,
                "action": rows.action,
                "right": torch.tensor(right, dtype=torch.bool),
                "answer": torch.tensor(answer, dtype=torch.long),
                "counts": torch.stack([one.long() for one in counts], dim=-1),
                "outputs": rows.output,
            }
        )

    def branches(self) -> Branches:
        """What was found, as tensors."""
        nodes, leaves = (
            {name: torch.cat([one[name] for one in found]) for name in found[0]}
            for found in (self.nodes, self.leaves)
        )
        roots = torch.zeros(self.problems, dtype=torch.long)
        children = torch.zeros(self.count, 2, dtype=torch.long)
        numbers = -1 - torch.arange(len(leaves["right"]))
        for found, references in ((nodes, nodes["number"]), (leaves, numbers)):
            first = found["parent"] < 0
            roots[found["problem"][first]] = references[first]
            children[found["parent"][~first], found["action"][~first]] = references[~first]
        return Branches(
            roots=roots,
            problem=nodes["problem"],
            depth=nodes["depth"],
            children=children,
            observations=nodes["observations"],
            tokens=nodes["tokens"],
            position=nodes["position"],
            right=leaves["right"],
            answer=leaves["answer"],
            counts=leaves["counts"],
            outputs=leaves["outputs"],
        )
