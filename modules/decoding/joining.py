"""A decoding session joined from its parts, and what a model's tokenizer says of a prompt."""

import dataclasses
from functools import partial
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from effllm.modules.decoding.session import Session
from effllm.modules.errors import ConfigError
from effllm.modules.heads.loaded import LoadedHeads
from effllm.modules.inference.runner import ModelRunner

NEEDS_DRAFT = (
    "this decoder needs a draft model: draft=checkpoint draft.ref=distill_draft/<digest>, which "
    "paper=fly makes; decoder=lookup needs none"
)


def join_session(
    proposer: Any,
    verifier: Any,
    target: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    draft: PreTrainedModel | LoadedHeads | None,
    *,
    stop_strings: tuple[str, ...] = (),
    text: bool = True,
) -> Session:
    """A session of built parts; a factory of a proposer is given its models here.

    Args:
        proposer: a proposer, or a factory called with `runner` and `vocabulary`; of one that drafts
            by heads, with `heads` and `model`.
        verifier: FLy's is told which tokens are special.
        target: the model whose text is wanted.
        tokenizer: its tokenizer.
        draft: for factories; trained heads are told apart by their type.
        stop_strings: the text ends in front of the first of these.
        text: whether the session also decodes text.

    Raises:
        ConfigError: if a draft model is needed and there is none.
    """
    runner = ModelRunner(target)
    if isinstance(proposer, partial):
        if draft is None:
            raise ConfigError(NEEDS_DRAFT)
        if isinstance(draft, LoadedHeads):
            proposer = proposer(heads=draft, model=target)
        else:
            proposer = proposer(runner=ModelRunner(draft), vocabulary=runner.vocabulary)
    if "protected" in {field.name for field in dataclasses.fields(verifier)}:
        verifier = dataclasses.replace(verifier, protected=frozenset(tokenizer.all_special_ids))
    return Session(
        target=runner,
        proposer=proposer,
        verifier=verifier,
        ends=end_tokens(target, tokenizer),
        tokenizer=tokenizer if text or stop_strings else None,
        stop_strings=stop_strings,
    )


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
