"""Exact greedy decoding on the real model: the tokens of transformers' `generate`, arm by arm.

In float32, where different orders of summation hardly ever change a choice. A text that differs is
judged at its first difference: is it a near-tie of the two likeliest tokens? The drafted tokens
per round go from 1 to 12 with the number of the prompt. Prints every difference and a summary.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Prompts
from effllm.pipelines.commands.composing import compose, resolve
from effllm.pipelines.commands.launch import run_command
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PreTrainedModel

    from effllm.modules.decoding.records import Block

_MOST_DRAFTED = 12
_NEAR_TIE = 1e-3  # nats between the two likeliest tokens


@dataclass
class DecoyTree:
    """Drafts a tree: a path along a known text, sometimes wrong, and a decoy beside each node.

    Args:
        text: what the target will say.
        start_at: length of the prompt.
        tokens: depth of the tree.
        vocabulary: decoys are below this.
    """

    text: list[int]
    start_at: int
    tokens: int
    vocabulary: int
    passes: int = field(default=0, init=False)

    def start(self, prompt: Sequence[int], ends: frozenset[int]) -> None:
        """Nothing to read."""
        self._random = Random(0)

    def propose(self, ids: Sequence[int], budget: int, generator: torch.Generator) -> Block:
        """Twice `tokens` nodes at most."""
        from effllm.modules.decoding.records import Block

        done = len(ids) - self.start_at
        tokens: list[int] = []
        parents: list[int] = []
        last = -1
        for token in self.text[done : done + min(budget, self.tokens)]:
            wrong = self._random.random() < 0.2
            tokens += [
                self._random.randrange(self.vocabulary),
                self._random.randrange(self.vocabulary) if wrong else token,
            ]
            parents += [last, last]
            last = len(tokens) - 1
        return Block(tokens, parents=parents)


def main() -> None:
    """Decode every prompt with every arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100, help="in all, over four kinds")
    parser.add_argument("--tokens", type=int, default=64, help="budget per prompt")
    parser.add_argument("--outputs", default="outputs")
    parser.add_argument("--eager", dest="fast", action="store_false", help="without compiled steps")
    options = parser.parse_args()

    from effllm.modules.decoding.joining import encode_prompt, end_tokens
    from effllm.modules.decoding.library import LibrarySession
    from effllm.modules.decoding.session import Session
    from effllm.modules.decoding.verifiers.exact import Exact
    from effllm.modules.inference.fast_path import speed_up
    from effllm.modules.inference.runner import ModelRunner

    checkpoint, prompts = _prepared(options.outputs, options.prompts)
    stock, model = checkpoint.load_model("float32"), checkpoint.load_model("float32")
    tokenizer = checkpoint.load_tokenizer()
    ends = end_tokens(model, tokenizer)
    print(f"passes: {speed_up(model) if options.fast else 'eager'}")
    runner = ModelRunner(model)
    same: Counter[str] = Counter()
    ties: Counter[str] = Counter()
    for number, one in enumerate(prompts.prompts()[: options.prompts]):
        prompt = encode_prompt(tokenizer, one.text, chat=one.chat)
        drafted = 1 + number % _MOST_DRAFTED
        expected = LibrarySession(stock, ends).decode(prompt, options.tokens).tokens
        for name, proposer in _arms(model, prompt, expected, drafted).items():
            session = Session(runner, proposer, Exact(), ends=ends)
            found = session.generate(prompt, options.tokens).tokens
            if found == expected:
                same[name] += 1
                continue
            gap = _gap(stock, prompt, expected, found)
            ties[name] += gap < _NEAR_TIE
            print(
                f"prompt {number}, {name}, K = {drafted}: differs where the gap is {gap:.1e} nats"
            )
        done = number + 1
        counts = ", ".join(f"{name} {same[name]} + {ties[name]}" for name in sorted(same | ties))
        print(f"{done} prompts; equal + near-ties: {counts}", flush=True)


def _prepared(outputs: str, prompts: int) -> tuple[Checkpoint, Prompts]:
    common = [
        "paper=fly",
        "scale=cpu",
        f"budget.decoding.prompts={-(-prompts // 4)}",
        f"paths.outputs={outputs}",
        "logger=none",
    ]
    run_command([*common, "execute.until=prompts"])
    store = Store(Path(outputs))
    graph = {one.name: one for one in build_graph(resolve(compose(common))[0], store)}
    base, asked = graph["base"], graph["prompts"]
    checkpoint = store.open(base.stage, base.digest, Checkpoint)
    found = store.open(asked.stage, asked.digest, Prompts)
    assert isinstance(checkpoint, Checkpoint) and isinstance(found, Prompts)
    return checkpoint, found


def _arms(
    model: PreTrainedModel, prompt: list[int], expected: list[int], drafted: int
) -> dict[str, Any]:
    from effllm.modules.decoding.drafts import FirstLayers
    from effllm.modules.decoding.proposers.base import Nothing
    from effllm.modules.decoding.proposers.draft import DraftModel, InnerLookup
    from effllm.modules.decoding.proposers.lookup import PromptLookup
    from effllm.modules.inference.runner import ModelRunner

    vocabulary = int(model.config.vocab_size)
    early = FirstLayers(2).of(model)
    return {
        "plain": Nothing(),
        "lookup": PromptLookup(tokens=drafted),
        "early exit": DraftModel(ModelRunner(early), vocabulary, tokens=drafted),
        "early exit + lookup": DraftModel(
            ModelRunner(early), vocabulary, tokens=drafted, lookup=InnerLookup()
        ),
        "tree": DecoyTree(expected, len(prompt), drafted, vocabulary),
    }


def _gap(model: PreTrainedModel, prompt: list[int], expected: list[int], found: list[int]) -> float:
    """Nats between the two likeliest tokens where two texts part."""
    import torch

    pairs = enumerate(zip(expected, found, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(found)))
    ids = torch.tensor([prompt + expected[:place]])
    with torch.no_grad():
        logits = model(ids, logits_to_keep=1).logits[0, -1]
    best = logits.topk(2).values
    return float(best[0] - best[1])


if __name__ == "__main__":
    main()
