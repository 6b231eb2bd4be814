"""What `effllm generate` is asked: a prompt, word for word, and settings, checked.

A prompt never goes through Hydra's grammar. Of the arguments, only those are settings whose part
before "=" names one; the rest is the prompt. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import NonEmpty, NonNegativeInt, PositiveInt

_SETTING = re.compile(r"\+{0,2}~?[\w./@-]+(?==)")
_LITERAL = ("prompt", "system")


class NoDraft(BaseModel, extra="forbid"):
    """No draft model."""

    kind: Literal["none"]


class FirstLayers(BaseModel, extra="forbid", strict=True):
    """The target's own first layers."""

    kind: Literal["first_layers"]
    layers: int = Field(ge=1)


class StoredDraft(BaseModel, extra="forbid", strict=True):
    """A checkpoint of the store."""

    kind: Literal["checkpoint"]
    ref: str = Field(min_length=1)


class DecoderParts(BaseModel, extra="forbid"):
    """What a session is made of, unbuilt; or `last`, or the result, that has an arbiter."""

    proposer: dict[str, Any] | None = None
    verifier: dict[str, Any] | None = None
    arbiter: str | None = None


class Machine(BaseModel, strict=True):
    """Where it runs: of conf/trainer what says so."""

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: PositiveInt | NonEmpty[NonNegativeInt]
    strategy: str


class Outputs(BaseModel, strict=True):
    """Folders."""

    outputs: str = Field(min_length=1)


class Settings(BaseModel):
    """Everything but the prompt; see conf/generate.yaml. Other keys may come from conf/local."""

    model_config = ConfigDict(strict=True, frozen=True)

    paths: Outputs
    model: dict[str, Any]
    draft: Annotated[NoDraft | FirstLayers | StoredDraft, Field(discriminator="kind")]
    decoder: DecoderParts
    trainer: Machine
    chat: bool
    system: str | None
    max_new_tokens: int = Field(ge=1)
    stop: list[Annotated[str, Field(min_length=1)]]
    device_map: str | None
    dtype: Literal["auto", "bfloat16", "float16", "float32", "float64"]
    seed: int = Field(ge=0, lt=2**63)


@dataclass(frozen=True)
class Asked:
    """One call of `effllm generate`.

    Attributes:
        prompt: the text, as it was given.
        system: system message, as it was given; None if the configuration says.
        overrides: all other settings.
    """

    prompt: str
    system: str | None
    overrides: list[str]


def read_arguments(words: Sequence[str], file: Path | None = None) -> Asked:
    """Tell prompt and settings apart.

    Args:
        words: the prompt, or `-` for standard input, and `key=value`.
        file: holds the prompt instead.

    Raises:
        ConfigError: for no prompt, more than one, one that is empty or no text, or a misspelt key.
    """
    unknown = [word for word in words if re.fullmatch(r"-\S+", word)]
    if unknown:
        raise ConfigError(
            f"unrecognized arguments: {' '.join(unknown)}; see effllm generate --help"
        )
    literal: dict[str, str] = {}
    overrides: list[str] = []
    prompts: list[str] = []
    for word in words:
        name, _, value = word.partition("=")
        if "=" in word and name in _LITERAL and word != "system=null":
            literal[name] = value
        elif _is_setting(word):
            overrides.append(word)
        else:
            prompts.append(word)
    if "prompt" in literal:
        prompts.append(literal["prompt"])
    if len(prompts) + (file is not None) > 1:
        raise ConfigError(
            f"one prompt at a time, found {', '.join(map(repr, prompts))}"
            f"{' and --file' if file is not None else ''}; put a prompt of several words "
            'in quotes: effllm generate "Why is the sky blue?"; --help lists the settings'
        )
    if file is not None:
        prompt = _read_file(file.expanduser())
    elif prompts and (prompts[0] != "-" or "prompt" in literal):
        prompt = prompts[0]
    elif prompts or (sys.stdin is not None and not sys.stdin.isatty()):
        prompt = _read_standard_input()
    else:
        prompt = ""
    if not prompt:
        raise ConfigError(
            'no prompt, or an empty one; try: effllm generate "What is the capital of France?"'
        )
    for name, text in {"prompt": prompt, "system message": literal.get("system", "")}.items():
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes that are no UTF-8
            raise ConfigError(f"the {name} is no UTF-8 text; convert it, for example with iconv")
    return Asked(prompt, literal.get("system"), overrides)


def check_settings(config: dict[str, Any]) -> Settings:
    """The composed configuration, checked.

    Raises:
        ConfigError: for values of another type or out of range; all of them, a line each.
    """
    try:
        return Settings.model_validate(config)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc']))}={one['input']!r}: {one['msg']}"
            for one in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join(problems)) from error


def _is_setting(word: str) -> bool:
    """Whether an argument is `key=value` of a key that there is.

    Raises:
        ConfigError: if the key is all but one.
    """
    found = _SETTING.match(word)
    if found is None:
        return False
    key = re.split(r"[./]", found[0].lstrip("+~").rpartition("@")[2])[0]
    known = [*Settings.model_fields, "hydra"]
    close = difflib.get_close_matches(key, [*known, *_LITERAL], n=1, cutoff=0.75)
    if close and key not in known:
        raise ConfigError(
            f"{word}: no setting of that name, did you mean {close[0]}? If it is the prompt, "
            f"give it as 'prompt={word}'"
        )
    return key in known


def _read_file(path: Path) -> str:
    try:
        return _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"--file {path}: {error.strerror}") from error


def _read_standard_input() -> str:
    try:
        return _decoded(sys.stdin.buffer.read(), "standard input")
    except (OSError, AttributeError) as error:  # closed, or nothing that can be read
        raise ConfigError(f"no prompt: standard input cannot be read ({error})") from error


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}: byte {error.start + 1} is no UTF-8; convert it, for example with iconv"
        ) from error
