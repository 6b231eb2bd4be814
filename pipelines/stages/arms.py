"""What the arms of a stage are, as plain data for its reports."""

from __future__ import annotations

import dataclasses
from dataclasses import is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def describe_arm(
    arm: dict[str, Any], target: PreTrainedModel, draft: PreTrainedModel | None, *, lossless: bool
) -> dict[str, Any]:
    """What an arm is, as plain data for reports.

    Returns:
        `{library, drafted, lossless, proposer, verifier, draft}`; `proposer` and `verifier` are
        null for transformers' own decoding, else `{class, ...plain settings}`; `draft` is null
        without a draft model, else `{parameters, layers, of_layers}`, the last null unless it is
        the first layers of the target.
    """
    shared = draft is not None and arm["draft"]["kind"] == "first_layers"
    return {
        "library": arm.get("library"),
        "drafted": arm.get("drafted"),
        "lossless": lossless,
        "proposer": _settings(arm.get("proposer")),
        "verifier": _settings(arm.get("verifier")),
        "draft": draft
        and {
            "parameters": draft.num_parameters(),
            "layers": draft.config.num_hidden_layers,
            "of_layers": target.config.num_hidden_layers if shared else None,
        },
    }


def _settings(part: Any) -> dict[str, Any] | None:
    """Class and plain settings of a built proposer or verifier, or of a factory of one."""
    if part is None:
        return None
    if isinstance(part, partial):
        cls, given = part.func, part.keywords
    else:
        cls = type(part)
        fields = dataclasses.fields(part) if is_dataclass(part) else ()
        given = {field.name: getattr(part, field.name) for field in fields if field.init}
    plain = {key: one for key, one in given.items() if isinstance(one, int | float | str)}
    return {"class": cls.__name__, **plain, "lookup": given.get("lookup") is not None}
