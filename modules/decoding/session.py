"""The loop of speculative decoding: draft, one pass of the target, decide, commit.

Invariant at the start of a round: the target's cache covers all committed tokens but the last.
A pass over that token and K drafted ones yields K + 1 rows of logits, the verifier names the kept
tokens and the one after them, and the cache goes back to what was kept. With nothing drafted this
is plain decoding, so every method runs in the same loop as its baseline.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from effllm.modules.decoding.proposers.base import Proposer, StateReader
from effllm.modules.decoding.proposers.draft_tree import DraftTree
from effllm.modules.decoding.records import Generation, RoundRecord
from effllm.modules.decoding.sampling import draw
from effllm.modules.decoding.verifiers.chain import Verifier
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.errors import ConfigError, UnsupportedModelError
from effllm.modules.inference.choice import best_tokens
from effllm.modules.inference.runner import ModelRunner

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what half a character decodes to

_SEEDS = 2**63  # each gives two streams, and PyTorch's seeds are below 2**64


@dataclass
class Session:
    """Decodes texts one after the other with one target.

    Args:
        target: the model whose text is wanted.
        proposer: drafts.
        verifier: judges drafts; its sampling is the law of the output.
        ends: token ids that end a text.
        tokenizer: needed for stop strings and for streaming text.
        stop_strings: the text ends in front of the first of these.

    Raises:
        ConfigError: for parts that do not fit together, and stop strings that are none.
        UnsupportedModelError: for trees on a model that cannot judge them.
    """

    target: ModelRunner
    proposer: Proposer
    verifier: Verifier
    ends: frozenset[int] = frozenset()
    tokenizer: PreTrainedTokenizerBase | None = None
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        reader = self.proposer if isinstance(self.proposer, StateReader) else None
        self._reader, self.target.keeps_states = reader, reader is not None
        if isinstance(self.proposer, DraftTree | StateReader):
            if not isinstance(self.verifier, Exact):
                name = type(self.verifier).__name__
                raise ConfigError(f"{name} judges chains only; draft chains, or take Exact")
            if self.target.no_trees:
                name = type(self.target.model).__name__
                raise UnsupportedModelError(f"{name}: {self.target.no_trees}")
        if self.stop_strings and self.tokenizer is None:
            raise ConfigError("stop strings need a tokenizer")
        if not all(isinstance(one, str) and one for one in self.stop_strings):
            raise ConfigError(f"stop strings must not be empty, got {list(self.stop_strings)}")

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """Decode the continuation of one prompt.

        Args:
            prompt: at least one token id.
            max_new_tokens: budget, never exceeded.
            seed: of every draw; 0 <= seed < 2**63.
            on_text: called with each new piece of text; needs a tokenizer.

        Returns:
            What was decoded; when interrupted, what was decoded until then.

        Raises:
            ConfigError: for an empty prompt, several prompts, or one that leaves no room; for a
                seed out of range.
        """
        if not 0 <= seed < _SEEDS:
            raise ConfigError(f"need 0 <= seed < 2**63, got {seed}")
        room = self._room(prompt, max_new_tokens)
        draws = [torch.Generator().manual_seed(2 * seed + part) for part in (0, 1)]
        output = _Output(self, on_text)
        rounds: list[RoundRecord] = []
        started = time.perf_counter()
        prefilled = started
        stop = "length"
        try:
            if room > 0:
                self.proposer.start(prompt, self.ends)
                if self._reader is not None:
                    self.target.reset()  # states of what is cached already are gone
                logits = self.target.sync(prompt)
                if self._reader is not None:
                    self._reader.observe(self._states())
                if self.verifier.sampling.greedy:
                    first = best_tokens(logits)[0]
                else:
                    first = draw(self.verifier.sampling.law(logits)[0], draws[0])
                prefilled = time.perf_counter()
                output.add([first], room)
            committed = list(prompt) + output.tokens
            while not output.ended and len(output.tokens) < room:
                rounds.append(self._round(committed, output, room, draws))
        except KeyboardInterrupt:
            stop = "interrupted"
        ended = time.perf_counter()
        output.flush()
        return Generation(
            tokens=output.tokens,
            text=output.text,
            stop=output.ended or stop,
            rounds=rounds,
            prefill_seconds=prefilled - started,
            decode_seconds=ended - prefilled,
        )

    def decode(self, prompt: Sequence[int], max_new_tokens: int, *, seed: int = 0) -> Generation:
        """As `generate`, but an interruption is passed on: half an output is no measurement.

        Raises:
            KeyboardInterrupt: when interrupted.
        """
        found = self.generate(prompt, max_new_tokens, seed=seed)
        if found.stop == "interrupted":
            raise KeyboardInterrupt
        return found

    def _round(
        self, committed: list[int], output: "_Output", room: int, draws: list[torch.Generator]
    ) -> RoundRecord:
        clock = time.perf_counter
        begun, passes = clock(), self.proposer.passes
        block = self.proposer.propose(committed, room - len(output.tokens) - 1, draws[1])
        drafted = clock()
        prefix = len(committed) - 1
        parents = None
        if block.parents is not None:
            parents = [-1, *(parent + 1 for parent in block.parents)]
        logits = self.target.advance([committed[-1], *block.tokens], parents=parents)
        verified = clock()
        decision = self.verifier.verify(block, logits, draws[0])
        decided = clock()
        kept = [0, *(node + 1 for node in decision.path)]
        self.target.keep(prefix, kept)
        if self._reader is not None:
            self._reader.observe(self._states()[kept])
        fresh = [*(block.tokens[node] for node in decision.path), decision.next_token]
        emitted = output.add(fresh, room)
        committed += emitted
        return RoundRecord(
            prefix=prefix + 1,
            drafted=len(block),
            accepted=len(decision.path),
            emitted=len(emitted),
            loosened=decision.loosened,
            draft_seconds=drafted - begun,
            verify_seconds=verified - drafted,
            decide_seconds=decided - verified,
            commit_seconds=clock() - decided,
            draft_passes=self.proposer.passes - passes,
            events=decision.events,
        )

    def _states(self) -> Tensor:
        assert self.target.states is not None
        return self.target.states

    def _room(self, prompt: Sequence[int], max_new_tokens: int) -> int:
        """Tokens that may be decoded within the budget and the model's context."""
        if not len(prompt):
            raise ConfigError("the prompt is empty; give at least one token")
        if not isinstance(prompt[0], int):
            raise ConfigError("one prompt at a time: batches are not supported, loop over prompts")
        if max_new_tokens < 0:
            raise ConfigError(f"max_new_tokens must be 0 or more, got {max_new_tokens}")
        if self.target.limit is None:
            return max_new_tokens
        if len(prompt) > self.target.limit:
            raise ConfigError(
                f"the prompt has {len(prompt)} tokens, the model's context {self.target.limit}"
            )
        return min(max_new_tokens, self.target.limit - len(prompt) + 1)


class _Output:
    """Tokens and text so far, cut at ends and stop strings."""

    def __init__(self, session: Session, on_text: Callable[[str], None] | None) -> None:
        self.ends, self.tokenizer = session.ends, session.tokenizer
        self.stop_strings, self.on_text = session.stop_strings, on_text
        self.tokens: list[int] = []
        self.text: str | None = None
        self.ended = ""
        self._shown = 0

    def add(self, fresh: list[int], room: int) -> list[int]:
        """Append up to the budget, the first end or the first stop string; what was appended."""
        kept: list[int] = []
        for token in fresh[: room - len(self.tokens)]:
            kept.append(token)
            if token in self.ends:
                self.ended = "eos"
                break
        if not self.stop_strings:
            self.tokens += kept
            if self.on_text is not None:
                self._show(final=False)
            return kept
        for count, token in enumerate(kept, start=1):
            self.tokens.append(token)
            text = self._decoded()
            cuts = [text.find(one) for one in self.stop_strings if one in text]
            if cuts:
                self.text, self.ended = text[: min(cuts)], "stop_string"
                return kept[:count]
        self._show(final=False)
        return kept

    def flush(self) -> None:
        """Set the final text and show what was held back."""
        if self.tokenizer is not None:
            if self.ended != "stop_string":
                self.text = self._decoded()
            self._show(final=True)

    def _decoded(self) -> str:
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(self.tokens, skip_special_tokens=True))

    def _show(self, *, final: bool) -> None:
        """Stream new text, but not half a character nor the beginning of a stop string."""
        if self.on_text is None or self.tokenizer is None:
            return
        text = self.text if final and self.text is not None else self._decoded()
        stop = len(text)
        if not final:
            while stop and text[stop - 1] == _REPLACEMENT:
                stop -= 1
            for one in self.stop_strings:
                held = next((n for n in range(len(one), 0, -1) if text.endswith(one[:n])), 0)
                stop = min(stop, len(text) - held)
        if stop > self._shown:
            self.on_text(text[self._shown : stop])
            self._shown = stop
