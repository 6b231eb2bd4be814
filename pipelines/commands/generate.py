"""`effllm generate`: prompt in, streamed text out, with a summary of speed and acceptance."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from effllm.pipelines.commands.asked import check_settings, read_arguments
from effllm.pipelines.commands.composing import compose, one_line
from effllm.pipelines.commands.decoders import open_session
from effllm.pipelines.commands.launch import quieten_libraries
from effllm.pipelines.commands.memory import keep_freed_memory
from effllm.pipelines.engine.interrupts import raise_if_asked

if TYPE_CHECKING:
    from pathlib import Path

    from effllm.modules.decoding.records import Generation


def generate_command(words: Sequence[str], file: Path | None = None) -> int:
    """`effllm generate PROMPT KEY=VALUE…`.

    Args:
        words: prompt and settings, see `read_arguments`.
        file: holds the prompt instead.

    Raises:
        EffLLMError: what went wrong, on one line; before a model is loaded where none is needed.
    """
    asked = read_arguments(words, file)
    composed = compose(asked.overrides, "generate")
    try:
        plain: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise one_line(error) from error
    settings = check_settings(plain)
    if asked.system is not None:
        settings = settings.model_copy(update={"system": asked.system})
    quieten_libraries()
    keep_freed_memory()
    session, prompt, most = open_session(settings, asked)

    def show(piece: str) -> None:
        raise_if_asked()
        print(piece, end="", flush=True)

    found = session.generate(prompt, most, seed=settings.seed, on_text=show)
    print()
    print(summary(found, len(prompt), session.verifier.lossless), file=sys.stderr)
    return 130 if found.stop == "interrupted" else 0


def summary(found: Generation, prompt_tokens: int, lossless: bool) -> str:
    """One line: speed, tokens per pass, acceptance."""
    drafted = sum(one.drafted for one in found.rounds)
    accepted = sum(one.accepted for one in found.rounds)
    speed = max(len(found.tokens) - 1, 0) / max(found.decode_seconds, 1e-9)
    parts = [
        f"{len(found.tokens)} tokens in {found.seconds:.1f} s",
        f"{speed:.1f} tokens/s after the prompt ({prompt_tokens} tokens, "
        f"{found.prefill_seconds:.2f} s)",
        f"{found.acceptance_length:.2f} tokens per pass",
    ]
    if drafted:
        parts.append(f"{100 * accepted / drafted:.0f} % of {drafted} drafted tokens kept")
    if not lossless:
        parts.append(f"{sum(one.loosened for one in found.rounds)} loosened (not lossless)")
    return f"[{', '.join(parts)}; ended by {found.stop}]"
