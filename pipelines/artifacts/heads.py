"""Drafting heads: cached hidden states, trained heads, and what was measured of them."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.modules.errors import ArtifactError
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.files import write_json, write_rows

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from effllm.modules.heads.drafter import HeadDrafter
    from effllm.modules.heads.loaded import LoadedHeads
    from effllm.modules.heads.states import StateTexts
    from effllm.modules.heads.target import FrozenTarget

_ROOT = "effllm.modules.heads."  # where drafters may come from


class HiddenStates(Artifact):
    """A target's last hidden states on texts, and the frozen parts that heads need of it.

    `shard-*.safetensors` as `StateTexts` reads them, `parts.safetensors` with embedding and head,
    the target's `config.json`, and `target.json`: hashes of weights and tokenizer, dtype.
    """

    kind = "hidden states"

    @staticmethod
    def write(
        folder: Path,
        model: PreTrainedModel,
        weights: tuple[Tensor, Tensor],
        about: Mapping[str, Any],
    ) -> None:
        """Write what states know of their target; tied weights once."""
        from safetensors.torch import save_file

        embedding, head = weights
        parts = {"embedding": embedding.contiguous()}
        if head is not embedding and head.data_ptr() != embedding.data_ptr():
            parts["head"] = head.contiguous()
        save_file({key: value.cpu() for key, value in parts.items()}, folder / "parts.safetensors")
        model.config.get_text_config(decoder=True).save_pretrained(folder)
        write_json(folder / "target.json", about)

    @property
    def target(self) -> dict[str, Any]:
        """`{checkpoint, weights, tokenizer, special, dtype}`: what the states belong to."""
        return dict(self.read_json("target.json"))

    def require_target(self, target: Mapping[str, Any]) -> None:
        """See that the states are of the target that other states or heads belong to.

        Raises:
            ArtifactError: if weights, tokenizer or dtype differ.
        """
        _require_same_target(self.label, self.target, target, ("dtype", "weights", "tokenizer"))

    def texts(self) -> StateTexts:
        """The texts, read from disk where they are needed."""
        from effllm.modules.heads.states import StateTexts

        return StateTexts(sorted(self.path.glob("shard-*.safetensors")))

    def config(self) -> PretrainedConfig:
        """Configuration of the target's decoder."""
        return _read_config(self.path)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The (V, C) embedding and the (V, C) head."""
        from safetensors.torch import load_file

        stored = load_file(self.path / "parts.safetensors")
        return stored["embedding"], stored.get("head", stored["embedding"])


def describe_target(checkpoint: Checkpoint) -> dict[str, Any]:
    """What heads must know of their target to be refused by another: `HiddenStates.target`.

    `weights` is a hash over the checkpoint's files, so that it is the same in every precision.
    """
    from effllm.modules.heads.target import tokenizer_hash

    tokenizer = checkpoint.load_tokenizer()
    files = checkpoint.manifest["outputs"]
    sums = sorted(files[name]["sha256"] for name in files if name.endswith(".safetensors"))
    return {
        "checkpoint": checkpoint.label,
        "weights": hashlib.sha256("".join(sums).encode()).hexdigest(),
        "tokenizer": tokenizer_hash(tokenizer),
        "special": sorted(tokenizer.all_special_ids),
    }


class Heads(Artifact):
    """A trained drafter: `heads.safetensors` with the tokens it knows, `heads.json` what it is.

    `ranks.safetensors` holds the ranks of the true tokens on held-out texts, `curve.csv` what was
    logged while it learnt, `config.json` its target's configuration.
    """

    kind = "heads"

    @staticmethod
    def write(
        folder: Path,
        states: HiddenStates,
        factory: Callable[..., HeadDrafter],
        drafter: HeadDrafter,
        target: FrozenTarget,
        ranks: tuple[Tensor, Tensor],
    ) -> None:
        """Write the files of a drafter.

        Args:
            folder: of the stage.
            states: that it was trained on.
            factory: made it.
            drafter: trained.
            target: says which tokens it knows.
            ranks: as they are read.
        """
        from safetensors.torch import save_file

        assert isinstance(factory, partial)
        cls: Any = factory.func
        stored = {key: value.cpu().contiguous() for key, value in drafter.state_dict().items()}
        save_file(stored | {"token_ids": target.token_ids.cpu()}, folder / "heads.safetensors")
        names = ("ranks", "texts")
        save_file(dict(zip(names, ranks, strict=True)), folder / "ranks.safetensors")
        states.config().save_pretrained(folder)
        about = {
            "module": cls.__module__,
            "class": cls.__name__,
            "settings": dict(factory.keywords),
            "parameters": sum(one.numel() for one in drafter.parameters()),
            "target": states.target,
        }
        write_json(folder / "heads.json", about)

    @property
    def about(self) -> dict[str, Any]:
        """`{class, settings, parameters, target}`."""
        return dict(self.read_json("heads.json"))

    def ranks(self) -> tuple[Tensor, Tensor]:
        """(P, K) ranks on held-out texts, and (P,) the text of each position."""
        from safetensors.torch import load_file

        stored = load_file(self.path / "ranks.safetensors")
        return stored["ranks"], stored["texts"]

    def load(self) -> tuple[HeadDrafter, Tensor]:
        """The drafter in float32, in eval mode, and the (n,) tokens that it can guess."""
        from safetensors.torch import load_file

        about = self.about
        module = str(about["module"])
        if not module.startswith(_ROOT):
            raise ArtifactError(f"{self.label}: its class is from {module}, expected {_ROOT}*")
        cls = getattr(importlib.import_module(module), about["class"])
        drafter: HeadDrafter = cls(_read_config(self.path), **about["settings"])
        stored = load_file(self.path / "heads.safetensors")
        token_ids = stored.pop("token_ids")
        drafter.load_state_dict(stored)
        return drafter.eval(), token_ids

    def ready(self) -> LoadedHeads:
        """The heads as a proposer needs them."""
        from effllm.modules.heads.loaded import LoadedHeads

        drafter, token_ids = self.load()
        return LoadedHeads(drafter, token_ids, self.ranks()[0], self.about["settings"])

    def require_target(self, target: Mapping[str, Any]) -> None:
        """See that a target is the one that the heads were trained on.

        Args:
            target: as of `HiddenStates.target`.

        Raises:
            ArtifactError: if weights or tokenizer differ.
        """
        _require_same_target(self.label, self.about["target"], target, ("weights", "tokenizer"))


def _require_same_target(
    label: str, mine: Mapping[str, Any], other: Mapping[str, Any], parts: Sequence[str]
) -> None:
    """Refuse what belongs to another target.

    Args:
        label: of the result that `mine` describes.
        mine: as of `HiddenStates.target`.
        other: the same of the target that is needed.
        parts: keys that must be equal.

    Raises:
        ArtifactError: names the first that is not.
    """
    for part in parts:
        if mine[part] != other[part]:
            raise ArtifactError(
                f"{label}: it belongs to another target ({mine['checkpoint']}): its {part} is "
                f"{mine[part][:12]}, expected {other[part][:12]} ({other['checkpoint']}); make it "
                "again with this target"
            )


class HeadScores(Artifact):
    """What a drafter is worth on test texts: `texts.jsonl`, a text per line; `trees.json`."""

    kind = "head scores"

    @staticmethod
    def write(
        folder: Path,
        about: Mapping[str, Any],
        trees: Mapping[int, Sequence[Sequence[int]]],
        rows: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write the files of scores."""
        write_json(folder / "subject.json", about)
        write_json(folder / "trees.json", {str(count): tree for count, tree in trees.items()})
        write_rows(folder / "texts.jsonl", rows)

    @property
    def about(self) -> dict[str, Any]:
        """As of the heads that were judged, and the held-out curve of their training."""
        return dict(self.read_json("subject.json"))

    def trees(self) -> dict[int, list[tuple[int, ...]]]:
        """Nodes wanted -> rank tuples."""
        return {
            int(count): [tuple(node) for node in tree]
            for count, tree in self.read_json("trees.json").items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """One object per text: `{text, positions, top1, top5, accepted}`, sums over positions."""
        return self.read_rows("texts.jsonl")


def _read_config(folder: Path) -> PretrainedConfig:
    from transformers import AutoConfig

    config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    return config
