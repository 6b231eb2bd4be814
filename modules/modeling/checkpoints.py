"""Checkpoint folders: loaded whatever made them, stock model or compact one with its own code."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from effllm.modules.modeling import modeling_compact
from effllm.modules.modeling.loading import load_whole

_CODE = Path(modeling_compact.__file__)


def is_compact(folder: Path) -> bool:
    """Whether a checkpoint folder holds a compact model."""
    return (folder / _CODE.name).is_file()


def reads_pictures(folder: Path) -> bool:
    """Whether a checkpoint folder holds a classifier of pictures."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    made = config.get("architectures") or [""]
    return str(made[0]).endswith("ForImageClassification")


def save_code(model: PreTrainedModel, folder: Path) -> None:
    """Put the modelling file beside the weights of a compact model; nothing for others."""
    if type(model).__module__ == modeling_compact.__name__:
        shutil.copyfile(_CODE, folder / _CODE.name)


def load_any(
    folder: Path, dtype: str, device_map: str | None = None, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a checkpoint folder, stock or compact.

    A compact one is read with this package's copy of its modelling file; no code of the folder
    runs.

    Args:
        folder: holds `config.json` and the weights.
        dtype: of the weights.
        device_map: transformers' word for spreading a model over devices, or None.
        trust_remote_code: run modelling code of the folder; it is never asked for.

    Raises:
        DataError: if the weights are not all those of the model, or not only those.
    """
    common = {"local_files_only": True, "use_safetensors": True, "device_map": device_map}
    cls: Any = AutoModelForCausalLM
    if is_compact(folder):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        cls = getattr(modeling_compact, config["architectures"][0])
    else:
        if reads_pictures(folder):
            cls = AutoModelForImageClassification
        common["trust_remote_code"] = trust_remote_code
    return load_whole(cls, folder, f"model folder {folder}", dtype=dtype, **common)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Args:
        folder: holds its files.
        trust_remote_code: run tokenizer code of the folder; it is never asked for.
    """
    # A compact model's type would make AutoTokenizer ask for leave to run its modelling file.
    config = PreTrainedConfig() if is_compact(folder) else None
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, config=config, trust_remote_code=trust_remote_code
    )
    return loaded
