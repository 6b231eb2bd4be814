"""The arms of a decoding stage: their models, their sessions, and what they are for reports.

An arm is `{proposer, verifier}`, a mapping with built parts. One with a draft model names it:
`draft: {kind: first_layers, layers}`, or `{kind: input, index}` into the stage's `drafts`; one with
trained heads `{kind: heads, index}` into the stage's `heads`, if it has that input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import NonNegativeInt, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.heads import Heads, describe_target
from effllm.pipelines.stage import StageContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from effllm.modules.decoding.library import Kind
    from effllm.modules.decoding.proposers.base import Proposer
    from effllm.modules.decoding.session import Session
    from effllm.modules.decoding.verifiers.chain import Verifier
    from effllm.modules.heads.loaded import LoadedHeads
    from effllm.modules.inference.fast_path import FastPath


class FirstLayersDraft(TypedDict):
    """A draft that is the target's own first layers."""

    kind: Literal["first_layers"]
    layers: PositiveInt


class GivenDraft(TypedDict):
    """A draft that is one of the stage's inputs."""

    kind: Literal["input"]
    index: NonNegativeInt


class TrainedDraft(TypedDict):
    """Heads on the target's hidden state, one of the stage's inputs."""

    kind: Literal["heads"]
    index: NonNegativeInt


class _Drafted(TypedDict, total=False):
    draft: FirstLayersDraft | GivenDraft | TrainedDraft | None


class ProposingArm(_Drafted):
    """What drafts; factories are given their models when they are joined."""

    proposer: Proposer | Callable[..., Proposer]


class DecodingArm(ProposingArm):
    """What drafts and what judges."""

    verifier: Verifier


class _Library(TypedDict):
    library: Kind


class LibraryArm(_Library, _Drafted, total=False):
    """transformers' own decoding, with at most `drafted` tokens a round."""

    drafted: PositiveInt


@dataclass(frozen=True)
class DecodingModels:
    """What the inputs `model` and `drafts` of a stage hold, ready to decode.

    Attributes:
        checkpoint: of the target.
        target: the model whose text is wanted.
        tokenizer: its tokenizer.
        drafts: draft models, in the order of the stage's input.
        heads: trained heads, in the order of the stage's input; none if it has no such input.
        fast_paths: how the models are run, the target first; none if they run as they are.
    """

    checkpoint: Checkpoint
    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    drafts: list[PreTrainedModel]
    heads: list[LoadedHeads]
    fast_paths: list[FastPath]

    @classmethod
    def load(cls, ctx: StageContext, dtype: str, *, fast: bool) -> DecodingModels:
        """Read the inputs; `fast` takes the fastest path of this machine."""
        from effllm.modules.inference.fast_path import speed_up

        checkpoint = ctx.input("model", Checkpoint)
        target = checkpoint.load_model(dtype, ctx.device, ctx.device_map)
        drafts = [one.load_draft(dtype, ctx.device) for one in ctx.input_list("drafts", Checkpoint)]
        paths = [speed_up(one) for one in (target, *drafts)] if fast else []
        heads = []
        for one in ctx.input_list("heads", Heads) if "heads" in ctx.inputs else ():
            one.require_target(describe_target(checkpoint))
            heads.append(one.ready())
        return cls(checkpoint, target, checkpoint.load_tokenizer(), drafts, heads, paths)

    def trained_heads(self, arm: Mapping[str, Any]) -> LoadedHeads | None:
        """The heads that an arm names, or None.

        Raises:
            ConfigError: if there are no such heads.
        """
        wanted = arm.get("draft")
        if wanted is None or wanted["kind"] != "heads":
            return None
        if not 0 <= wanted["index"] < len(self.heads):
            raise ConfigError(
                f"draft {wanted}: expected an index below {len(self.heads)}, the number of the "
                "stage's heads"
            )
        return self.heads[wanted["index"]]

    def draft(self, arm: Mapping[str, Any]) -> PreTrainedModel | None:
        """The draft model that an arm names, or None.

        Raises:
            ConfigError: if there is no such draft.
        """
        wanted = arm.get("draft")
        if wanted is None or wanted["kind"] == "heads":
            return None
        if wanted["kind"] == "first_layers":
            from effllm.modules.decoding.early_exit import first_layers
            from effllm.modules.inference.fast_path import speed_up

            shallow = first_layers(self.target, int(wanted["layers"]))
            if self.fast_paths:
                speed_up(shallow)
            return shallow
        if wanted["kind"] != "input" or not 0 <= wanted.get("index", -1) < len(self.drafts):
            raise ConfigError(
                f"draft {wanted}: expected kind first_layers with layers, or input with an index "
                f"below {len(self.drafts)}, the number of the stage's drafts"
            )
        return self.drafts[wanted["index"]]

    def path_metrics(self) -> dict[str, float | str]:
        """How the target is run, and the seconds of making all models ready."""
        if not self.fast_paths:
            return {"fast_path": "not wanted", "fast_path_seconds": 0.0}
        seconds = sum(one.seconds for one in self.fast_paths)
        return {"fast_path": str(self.fast_paths[0]), "fast_path_seconds": seconds}

    def session(
        self, arm: Mapping[str, Any], *, verifier: Verifier | None = None, text: bool = False
    ) -> Session:
        """A session of an arm's parts, with its own verifier unless another is given."""
        from effllm.modules.decoding.joining import join_session

        judge = verifier or arm["verifier"]
        draft = self.trained_heads(arm) or self.draft(arm)
        return join_session(arm["proposer"], judge, self.target, self.tokenizer, draft, text=text)

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt."""
        from effllm.modules.decoding.joining import encode_prompt

        return encode_prompt(self.tokenizer, text, chat=chat)


def describe_arm(
    arm: Mapping[str, Any],
    target: PreTrainedModel,
    draft: PreTrainedModel | LoadedHeads | None,
    *,
    lossless: bool,
) -> dict[str, Any]:
    """What an arm is, as plain data for reports.

    Returns:
        `{library, drafted, lossless, proposer, verifier, draft}`; `proposer` and `verifier` are
        null for transformers' own decoding, else `{class, ...plain settings}`; `draft` is null
        without a draft model, else `{parameters, layers, of_layers}`, the last null unless it is
        the first layers of the target; of trained heads `{parameters, heads, settings}`.
    """
    from effllm.modules.heads.loaded import LoadedHeads

    if isinstance(draft, LoadedHeads):
        described: Any = {
            "parameters": sum(one.numel() for one in draft.drafter.parameters()),
            "heads": type(draft.drafter).__name__,
            "settings": draft.settings,
        }
    elif draft is None:
        described = None
    else:
        described = {
            "parameters": draft.num_parameters(),
            "layers": draft.config.num_hidden_layers,
            "of_layers": target.config.num_hidden_layers
            if arm["draft"]["kind"] == "first_layers"
            else None,
        }
    return {
        "library": arm.get("library"),
        "drafted": arm.get("drafted"),
        "lossless": lossless,
        "proposer": _settings(arm.get("proposer")),
        "verifier": _settings(arm.get("verifier")),
        "draft": described,
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
    plain = {key: one for key, one in given.items() if isinstance(one, int | float | str | list)}
    return {"class": cls.__name__, **plain, "lookup": given.get("lookup") is not None}
