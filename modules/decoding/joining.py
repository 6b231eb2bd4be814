"""A decoder: what drafts, what judges, and what drafts are made with; joined to a target.

Nothing but torch and transformers is needed:

    session = Decoder(PromptLookup(tokens=8), Fly(window=3)).join(model, tokenizer)
    print(session.generate(tokenizer("Once upon a time")["input_ids"], 64).text)
"""

import dataclasses
import inspect
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from effllm.modules.decoding.drafts import Draft
from effllm.modules.decoding.proposers.base import Nothing, Proposer
from effllm.modules.decoding.session import Session
from effllm.modules.decoding.verifiers.chain import TokenReader, Verifier
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.errors import ConfigError
from effllm.modules.inference.runner import ModelRunner


@dataclass(frozen=True)
class Decoder:
    """One way to decode; without arguments plain greedy decoding.

    Args:
        proposer: drafts; a factory (`functools.partial`) if it needs a model or heads.
        verifier: judges drafts; its sampling is the law of the output.
        draft: what the factory is called with; None for a proposer that is built.

    Raises:
        ConfigError: for a factory without a draft, or a draft that nobody asked for.
    """

    proposer: Proposer | partial[Any] = field(default_factory=Nothing)
    verifier: Verifier = field(default_factory=Exact)
    draft: Draft | None = None

    def __post_init__(self) -> None:
        require_draft(self.proposer, given=self.draft is not None)

    def join(
        self,
        target: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop_strings: tuple[str, ...] = (),
    ) -> Session:
        """A session that decodes texts of a target.

        Args:
            target: the model whose text is wanted; `fast_path.speed_up` makes it faster before.
            tokenizer: its tokenizer.
            stop_strings: the text ends in front of the first of these.

        Raises:
            ConfigError: for parts that do not fit together.
            UnsupportedModelError: for models that cannot be decoded so.
        """
        runner, verifier, ends = ModelRunner(target), self.verifier, end_tokens(target, tokenizer)
        if isinstance(verifier, TokenReader):
            verifier = verifier.knowing(frozenset(tokenizer.all_special_ids), ends)
        return Session(
            target=runner,
            proposer=self._drafting(runner),
            verifier=verifier,
            ends=ends,
            tokenizer=tokenizer,
            stop_strings=stop_strings,
        )

    def about(self, target: PreTrainedModel) -> dict[str, Any]:
        """What it is, as plain data for reports.

        Returns:
            `{library, drafted, lossless, proposer, verifier, draft}`: proposer and verifier are
            `{class, ...plain settings}`, `draft` is as it says itself; `library` and `drafted` are
            null, as the rest is for transformers' own decoding (`library.py`).
        """
        return {
            "library": None,
            "drafted": None,
            "lossless": self.verifier.lossless,
            "proposer": _settings(self.proposer),
            "verifier": _settings(self.verifier),
            "draft": None if self.draft is None else self.draft.about(target),
        }

    def _drafting(self, target: ModelRunner) -> Proposer:
        if not isinstance(self.proposer, partial):
            return self.proposer
        assert self.draft is not None
        parts = self.draft.parts(target)
        try:
            inspect.signature(self.proposer).bind(**parts)
        except TypeError as error:
            raise ConfigError(
                f"{self.proposer.func.__name__} cannot draft with {type(self.draft).__name__} "
                f"({error}); give it another draft"
            ) from error
        made: Proposer = self.proposer(**parts)
        return made


def require_draft(proposer: Proposer | partial[Any], *, given: bool) -> None:
    """See that there is a draft exactly where a proposer needs one.

    Raises:
        ConfigError: if there is not.
    """
    needed = isinstance(proposer, partial)
    if needed and not given:
        raise ConfigError(
            "this decoder needs a draft model: draft=checkpoint draft.ref=distill_draft/<digest>, "
            "which paper=fly makes; decoder=lookup needs none"
        )
    if given and not needed:
        raise ConfigError(
            "a draft was given, but this decoder drafts without a model; take decoder=draft, "
            "draft_tree or draft_fly, or leave out draft=…"
        )


def _settings(part: Any) -> dict[str, Any]:
    """Class and plain settings of a built proposer or verifier, or of a factory of one."""
    if isinstance(part, partial):
        cls: Any = part.func
        given = part.keywords
    else:
        cls = type(part)
        fields = dataclasses.fields(part) if is_dataclass(part) else ()
        given = {field.name: getattr(part, field.name) for field in fields if field.init}
    plain = {k: v for k, v in given.items() if isinstance(v, int | float | str | list)}
    return {"class": cls.__name__, **plain, "lookup": given.get("lookup") is not None}


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All token ids that end a text."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(int(one) for one in [*ends, tokenizer.eos_token_id] if one is not None)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool, system: str | None = None
) -> list[int]:
    """Token ids of a prompt, as a chat turn if wanted and the tokenizer has a template.

    Raises:
        ConfigError: if the template refuses the turns, or there is none for a system message.
    """
    if not chat or not tokenizer.chat_template:
        if system:
            why = "the model has no chat template" if chat else "chat=false"
            raise ConfigError(f"a system message belongs to a chat, but {why}; leave out system=")
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    try:
        encoded: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        remedy = "leave out system=, or take chat=false" if system else "take chat=false"
        raise ConfigError(f"the model's chat template says: {said}; {remedy}") from error
    return list(encoded["input_ids"])
