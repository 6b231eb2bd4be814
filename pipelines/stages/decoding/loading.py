"""The arms of a decoding stage, and the inputs that make decoders of them.

An arm is `{proposer, verifier}`, a mapping with built parts. One with a draft model names it:
`draft: {kind: first_layers, layers}`, or `{kind: input, index}` into the stage's `drafts`; one with
trained heads `{kind: heads, index}` into the stage's `heads`, if it has that input. The mapping is
what digests hold; `DecodingModels.decoder` makes an object of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from effllm.modules.errors import ConfigError
from effllm.modules.ranges import NonNegativeInt, PositiveInt
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.decoding import load_draft
from effllm.pipelines.artifacts.heads import Heads, describe_target
from effllm.pipelines.stage import StageContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from effllm.modules.decoding.drafts import Draft, Given
    from effllm.modules.decoding.joining import Decoder
    from effllm.modules.decoding.library import Kind, Library
    from effllm.modules.decoding.proposers.base import Proposer
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
    """What the inputs `model`, `drafts` and `heads` of a stage hold, ready to decode.

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
    drafts: list[Given]
    heads: list[LoadedHeads]
    fast_paths: list[FastPath]

    @classmethod
    def load(cls, ctx: StageContext, dtype: str, *, fast: bool) -> DecodingModels:
        """Read the inputs; `fast` takes the fastest path of this machine."""
        from effllm.modules.decoding.drafts import Given
        from effllm.modules.inference.fast_path import speed_up

        checkpoint = ctx.input("model", Checkpoint)
        target = checkpoint.load_model(dtype, ctx.device, ctx.device_map)
        drafts = [
            load_draft(draft, dtype, ctx.device) for draft in ctx.input_list("drafts", Checkpoint)
        ]
        paths = [speed_up(model) for model in (target, *drafts)] if fast else []
        heads = []
        for stored in ctx.input_list("heads", Heads) if "heads" in ctx.inputs else ():
            stored.require_target(describe_target(checkpoint))
            heads.append(stored.ready())
        return cls(
            checkpoint,
            target,
            checkpoint.load_tokenizer(),
            [Given(model) for model in drafts],
            heads,
            paths,
        )

    def stock(self, ctx: StageContext, dtype: str) -> DecodingModels:
        """The same models as they are, with whole heads, for transformers' own decoding."""
        from effllm.modules.decoding.drafts import Given

        return replace(
            self,
            target=self.checkpoint.load_model(dtype, ctx.device, ctx.device_map),
            drafts=[
                Given(one.load_model(dtype, ctx.device))
                for one in ctx.input_list("drafts", Checkpoint)
            ],
            fast_paths=[],
        )

    def decoder(self, arm: Mapping[str, Any]) -> Decoder:
        """The decoder that an arm stands for.

        Raises:
            ConfigError: if its draft is not there, or does not fit.
        """
        from effllm.modules.decoding.joining import Decoder

        return Decoder(arm["proposer"], arm["verifier"], self._draft(arm.get("draft")))

    def library(self, arm: Mapping[str, Any]) -> Library:
        """As `decoder`, of transformers' own arms."""
        from effllm.modules.decoding.library import Library

        settings = {key: value for key, value in arm.items() if key == "drafted"}
        draft: Any = self._draft(arm.get("draft"))  # looked at by the class
        return Library(kind=arm["library"], draft=draft, **settings)

    def _draft(self, wanted: Mapping[str, Any] | None) -> Draft | None:
        from effllm.modules.decoding.drafts import FirstLayers

        if wanted is None:
            return None
        if wanted["kind"] == "first_layers":
            return FirstLayers(wanted["layers"])
        given: list[Draft] = [*(self.heads if wanted["kind"] == "heads" else self.drafts)]
        if wanted["index"] >= len(given):
            raise ConfigError(
                f"draft {dict(wanted)}: expected an index below {len(given)}, the number of the "
                f"stage's {'heads' if wanted['kind'] == 'heads' else 'drafts'}"
            )
        return given[wanted["index"]]

    def path_metrics(self) -> dict[str, float | str]:
        """How the target is run, and the seconds of making all models ready."""
        if not self.fast_paths:
            return {"fast_path": "not wanted", "fast_path_seconds": 0.0}
        seconds = sum(path.seconds for path in self.fast_paths)
        return {"fast_path": str(self.fast_paths[0]), "fast_path_seconds": seconds}

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt."""
        from effllm.modules.decoding.joining import encode_prompt

        return encode_prompt(self.tokenizer, text, chat=chat)
