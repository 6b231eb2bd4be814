"""Run lm-evaluation-harness tasks on a model in memory, with shared prefixes.

The harness scores each (context, continuation) pair in a sequence of its own, so a question with
four choices reads its context four times. Here a context is read once and its continuations hang
on it as branches: a 4-D attention mask hides the branches from each other and position ids count
along each branch. Output logits are computed for continuation tokens only. The numbers are those
of the harness's own path up to rounding; a test holds both together. Models whose attention
windows are shorter than the longest input take the harness's own path: the given mask would
replace their windows.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from effllm.modules.errors import UnsupportedModelError

Request = tuple[Any, list[int], list[int]]


@dataclass(frozen=True)
class TaskResults:
    """Results of all tasks.

    Attributes:
        metrics: `<task>/<metric>` -> value.
        rows: `{"set": task, "id": item, "correct": 0 or 1}` per item.
        versions: task -> version.
    """

    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    versions: dict[str, Any]


def evaluate_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[str],
    *,
    include_path: Path | None,
    include_defaults: bool,
    batch_size: int,
    max_length: int,
    limit: int | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TaskResults:
    """Evaluate tasks that score continuations.

    Args:
        model: causal language model.
        tokenizer: its tokenizer.
        tasks: names of harness tasks.
        include_path: folder with task YAML files of our own.
        include_defaults: also index the harness's own tasks.
        batch_size: contexts per forward pass.
        max_length: longest context plus continuation, in tokens.
        limit: first so many items of each task; all if None.
        progress: called with contexts done and in all.
    """
    quieten_harness()
    adapter = BranchingLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=max_length,
        progress=progress,
    )
    return run_tasks(
        adapter,
        tasks,
        include_path=include_path,
        include_defaults=include_defaults,
        limit=limit,
    )


def quieten_harness() -> None:
    """Hide the harness's advice for its own command line, and git's complaint outside of a tree."""
    evaluator.get_git_commit_hash = lambda: None  # nobody reads it, and manifests have ours
    for name in ("lm_eval", "lm_eval.models.huggingface"):
        logging.getLogger(name).setLevel(logging.ERROR)


def run_tasks(
    adapter: HFLM,
    tasks: list[str],
    *,
    include_path: Path | None,
    include_defaults: bool,
    limit: int | None,
) -> TaskResults:
    """Run tasks on an adapter of the harness; see `evaluate_tasks`.

    A task that reads its answers in several ways has a metric and a set of rows for each:
    `gsm8k/exact_match/strict-match`, set `gsm8k/strict-match`.
    """
    manager = TaskManager(
        include_path=None if include_path is None else str(include_path),
        include_defaults=include_defaults,
    )
    results: Any = evaluator.simple_evaluate(
        model=adapter,
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    metrics = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            name, comma, reading = key.partition(",")
            if comma and not name.endswith("_stderr"):
                metrics[_set_name(f"{task}/{name}", reading)] = float(value)
    rows = []
    for task, samples in results["samples"].items():
        for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
            right = sample.get("acc", sample.get("exact_match"))
            if right is not None:
                name = _set_name(task, sample["filter"])
                rows.append({"set": name, "id": int(sample["doc_id"]), "correct": int(right)})
    return TaskResults(metrics, rows, dict(results["versions"]))


def _set_name(name: str, reading: str) -> str:
    return name if reading == "none" else f"{name}/{reading}"


class BranchingLM(HFLM):
    """The harness's model adapter with one pass per context instead of one per continuation.

    Raises:
        UnsupportedModelError: if branch masks or hidden-state logits do not reproduce the model's
            own logits; checked once on a short sequence.
    """

    def __init__(
        self,
        *,
        pretrained: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        max_length: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        super().__init__(
            pretrained=pretrained,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
        )
        self.branch_batch = batch_size
        self.progress = progress
        window = getattr(pretrained.config, "sliding_window", None)
        self.shares_prefixes = window is None or window >= max_length
        if self.shares_prefixes:
            self._check_model()

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """As the harness, without its progress bars."""
        del disable_tqdm
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Log-likelihood and greedy match per request, in the order of the requests."""
        if not self.shares_prefixes:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        del disable_tqdm, override_bs
        trees: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            room = self.max_length + 1 - len(continuation)
            trees.setdefault(tuple(context[-room:]), []).append(number)
        order = sorted(trees, key=len, reverse=True)  # like lengths together: little padding
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in range(0, len(order), self.branch_batch):
            contexts = order[start : start + self.branch_batch]
            batch = [
                (list(prefix), [requests[number][2] for number in trees[prefix]])
                for prefix in contexts
            ]
            scored = self._score(batch)
            for prefix, answered in zip(contexts, scored, strict=True):
                for number, answer in zip(trees[prefix], answered, strict=True):
                    answers[number] = answer
            self.progress(start + len(contexts), len(order))
        return answers

    def _score(
        self, batch: list[tuple[list[int], list[list[int]]]]
    ) -> list[list[tuple[float, bool]]]:
        """Score all branches of a batch of (context, continuations)."""
        rows: list[tuple[list[int], list[int], list[int]]] = []
        wanted: list[tuple[int, int]] = []
        targets: list[int] = []
        for row, (context, branches) in enumerate(batch):
            tokens, parents = list(context), [-1] * len(context)
            positions = list(range(len(context)))
            for branch, continuation in enumerate(branches):
                # The last token of a continuation predicts nothing and is not read.
                places = [
                    len(context) - 1,
                    *range(len(tokens), len(tokens) + len(continuation) - 1),
                ]
                tokens += continuation[:-1]
                parents += [branch] * (len(continuation) - 1)
                positions += range(len(context), len(context) + len(continuation) - 1)
                wanted += [(row, place) for place in places]
                targets += continuation
            rows.append((tokens, parents, positions))
        log_probs = self._log_probs(rows, wanted)  # (sum of continuation lengths, V)
        target = torch.tensor(targets, device=log_probs.device)
        chosen = log_probs.gather(1, target[:, None])[:, 0].tolist()
        greedy = (log_probs.argmax(dim=1) == target).tolist()
        scored, place = [], 0
        for _, branches in batch:
            answers = []
            for continuation in branches:
                span = slice(place, place + len(continuation))
                answers.append((sum(chosen[span]), all(greedy[span])))
                place += len(continuation)
            scored.append(answers)
        return scored

    def _log_probs(
        self,
        rows: list[tuple[list[int], list[int], list[int]]],
        wanted: list[tuple[int, int]],
    ) -> Tensor:
        """(len(wanted), V) float32 log-probabilities at (row, place)."""
        device = self.model.device
        width = max(len(tokens) for tokens, _, _ in rows)
        ids = torch.full((len(rows), width), self.eot_token_id)
        parents = torch.full((len(rows), width), -2)
        positions = torch.zeros((len(rows), width), dtype=torch.long)
        for row, (tokens, parent, position) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            parents[row, : len(tokens)] = torch.tensor(parent)
            positions[row, : len(tokens)] = torch.tensor(position)
        same = (parents[:, :, None] == parents[:, None, :]) | (parents[:, None, :] == -1)
        visible = same & torch.ones(width, width, dtype=torch.bool).tril()
        mask = torch.zeros(visible.shape, dtype=self.model.dtype)
        mask.masked_fill_(~visible, torch.finfo(self.model.dtype).min)
        hidden = self.model.base_model(
            input_ids=ids.to(device),
            attention_mask=mask[:, None].to(device),  # (B, 1, T, T)
            position_ids=positions.to(device),
            use_cache=False,
        ).last_hidden_state
        row_index = torch.tensor([row for row, _ in wanted], device=device)
        place_index = torch.tensor([place for _, place in wanted], device=device)
        logits = self.model.get_output_embeddings()(hidden[row_index, place_index])
        return torch.log_softmax(logits.float(), dim=-1)

    @torch.no_grad()
    def _check_model(self) -> None:
        """Refuse a model whose own probabilities differ from those computed here.

        Half precision moves single log-probabilities by more than one, so no fixed bound serves.
        The yardstick is the fault itself: the distance that a lost branch mask makes.
        """
        tokens = [int(token) for token in torch.arange(1000, 1009) % self.model.config.vocab_size]
        shared, length = 5, len(tokens)
        own = torch.softmax(
            self.model(torch.tensor([tokens], device=self.model.device)).logits[0].float(), dim=-1
        )
        # A second branch with the same tokens and positions must give the same answer.
        doubled = tokens + tokens[shared:]
        positions = [*range(length), *range(shared, length)]
        second = [(0, place) for place in range(length, len(doubled))]

        def distance(parents: list[int]) -> float:
            """Mean total variation between the second branch and the model's own answers."""
            ours = self._log_probs([(doubled, parents, positions)], second).exp()
            return float((ours - own[shared:]).abs().sum(dim=-1).mean() / 2)

        branches = length - shared
        found = distance([-1] * shared + [0] * branches + [1] * branches)
        lost = distance([-1] * len(doubled))
        if not found <= 0.25 * lost:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: branch masks change its probabilities by "
                f"{found:.3g} (total variation; without any mask by {lost:.3g}); this model "
                "cannot be evaluated with shared prefixes"
            )
