"""Models: a Hugging Face folder with the history of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.modules.errors import ArtifactError, ConfigError
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.files import write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HISTORY_FILE = "effllm.json"
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len")  # what families call it
VOCABULARY_FILE = "draft_vocabulary.safetensors"


class Checkpoint(Artifact):
    """A model folder in Hugging Face format with tokenizer, history, and masks if pruned."""

    kind = "checkpoint"

    @staticmethod
    def write(
        folder: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        history: list[dict[str, Any]],
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the files of a model; masks at eight weights a byte, code if it is compact.

        A model of pictures has no tokenizer.
        """
        from safetensors.torch import save_file

        from effllm.modules.modeling.checkpoints import save_code
        from effllm.modules.sparsity.masks import pack_mask

        model.save_pretrained(folder)
        save_code(model, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_json(folder / HISTORY_FILE, {"history": history})
        if masks is not None:
            save_file({k: pack_mask(v) for k, v in masks.items()}, folder / "masks.safetensors")
            write_json(folder / "masks.json", {name: mask.shape[1] for name, mask in masks.items()})

    def require_context(self, tokens: int, what: str) -> None:
        """See that the model was made for texts of so many tokens.

        Raises:
            ConfigError: if it was not, though some models would read on.
        """
        config = self.read_json("config.json")
        config = config.get("text_config") or config
        limit = next((config[key] for key in _CONTEXTS if config.get(key)), None)
        if limit is not None and tokens > limit:
            raise ConfigError(
                f"{what}: {tokens} tokens are more than the model's context of {limit}; take "
                "fewer, or a model with a longer one (model=…)"
            )

    def load_model(
        self, dtype: str, device: str = "cpu", device_map: str | None = None
    ) -> PreTrainedModel:
        """The model in `dtype`, ready for inference, on `device` or as `device_map` spreads it."""
        from effllm.modules.modeling.checkpoints import load_any

        model = load_any(self.path, dtype, device_map, trust_remote_code=self.trusts_code)
        if device_map is None:
            model.to(device)  # type: ignore[arg-type] # its wrapper hides the method
        return model.eval()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        from effllm.modules.modeling.checkpoints import load_tokenizer

        return load_tokenizer(self.path, trust_remote_code=self.trusts_code)

    def tokenizer_if_any(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer; None for a model of pictures."""
        from effllm.modules.modeling.checkpoints import reads_pictures

        return None if reads_pictures(self.path) else self.load_tokenizer()

    @property
    def history(self) -> list[dict[str, Any]]:
        """What was done to the model, oldest first: `{"stage": ..., ...}`."""
        return list(self.read_json(HISTORY_FILE)["history"])

    @property
    def trusts_code(self) -> bool:
        """Whether code that came with the model may run: as was said when it was imported."""
        return any(step.get("trust_remote_code", False) for step in self.history)

    def masks(self) -> dict[str, Tensor]:
        """(R, C) bool masks, True = kept, keyed `<block>.<layer>`.

        Raises:
            ArtifactError: if the checkpoint was never pruned.
        """
        from safetensors.torch import load_file

        from effllm.modules.sparsity.masks import unpack_mask

        file = self.path / "masks.safetensors"
        if not file.is_file():
            raise ArtifactError(f"{self.label} has no masks: expected a pruned checkpoint")
        columns = self.read_json("masks.json")
        return {name: unpack_mask(value, columns[name]) for name, value in load_file(file).items()}
