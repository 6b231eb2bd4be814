"""What is wrong with a model, told from its files alone.

No weight is read and nothing heavy imported, so that `effllm plan` refuses a model that cannot be
loaded before any work is done. Every cause has its own message and remedy. What only shows when
the weights are read is told by `effllm.modules.modeling.loading`.
"""

import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from effllm.modules.errors import DataError

_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")  # in transformers' order
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip
_JSON = (
    "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
    "special_tokens_map.json",
)  # fmt: skip
_POINTER = b"version https://git-lfs"
_PULL = (
    "is a git-lfs pointer, not the file itself; run `git lfs pull` in the folder, or download the "
    "model again"
)
_LARGEST_HEADER = 100_000_000  # bytes; safetensors itself reads no larger one
_FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' words

# What families call the same number.
_WIDTHS = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SIZES = (
    *_WIDTHS, *_HEADS, *_KEY_HEADS, *_LAYERS, "vocab_size", "head_dim", "intermediate_size",
    "ffn_dim", "n_inner", "max_position_embeddings", "n_positions", "n_ctx",
)  # fmt: skip
_OWN_HEAD_SIZE = ("head_dim", "head_size", "d_kv", "d_head")  # endings
_DTYPES = ("float32", "float16", "bfloat16", "float64")


def require_sound(folder: Path, *, safetensors_only: bool, trust_remote_code: bool) -> None:
    """Refuse a folder that holds no complete decoder-only language model.

    Args:
        folder: the folder.
        safetensors_only: weights stored as pickles do not count.
        trust_remote_code: modelling code in the folder may run.

    Raises:
        DataError: with what is wrong, and the remedy.
    """
    try:
        problem = _folder_problem(folder, safetensors_only, trust_remote_code)
    except OSError as error:
        problem = f"{error.filename} cannot be read ({error.strerror})"
    if problem:
        raise DataError(f"model folder {folder}: {problem}")


def _folder_problem(folder: Path, safetensors_only: bool, trust: bool) -> str | None:
    if not folder.is_dir():
        if folder.exists():
            return "is a file; expected a folder with config.json, weights and tokenizer"
        return "does not exist; expected a folder with config.json, weights and tokenizer"
    names = {file.name for file in folder.iterdir() if file.is_file()}
    problem = listing_problem(names, safetensors_only)
    if problem:
        inner = sorted([*folder.glob("*/config.json"), *folder.glob("*/*/config.json")])
        if "config.json" not in names and inner:
            problem += f"; the model seems to be in {inner[0].parent}"
        return problem
    for name in sorted(names.intersection((*_JSON, *_TOKENIZERS))):
        if _starts_with(folder / name, _POINTER):
            return f"{name} {_PULL}"
    for name in sorted(names.intersection(_JSON)):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            return f"{name} is broken JSON ({error}); fetch the model again"
        if not isinstance(content, dict):
            return f"{name} holds {type(content).__name__}, expected a JSON object"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config_problem(config, trust, names) or _weights_problem(folder, names, config)


def listing_problem(names: Iterable[str], safetensors_only: bool) -> str | None:
    """What a model lacks, from the names of its files; None if nothing.

    Args:
        names: files at the top of the folder or repository.
        safetensors_only: weights stored as pickles do not count.
    """
    names = set(names)
    if "adapter_config.json" in names:
        return (
            "is an adapter (LoRA); merge it into its base model first (peft: merge_and_unload, "
            "then save_pretrained) and give that folder"
        )
    if "config.json" not in names:
        ggufs = sorted(name for name in names if name.endswith(".gguf"))
        if ggufs:
            return f"{ggufs[0]} is GGUF; expected config.json and safetensors of the model"
        return "has no config.json; expected a folder as transformers' save_pretrained writes it"
    if not names & set(_SAFETENSORS):
        if not names & set(_PICKLES):
            found = ", ".join(sorted(names)[:8])
            return f"has no weights: expected {' or '.join(_SAFETENSORS)}, found {found}"
        if safetensors_only:
            return (
                f"its weights are stored as pickles only ({min(names & set(_PICKLES))}); "
                "model.safetensors_only=false reads them with weights_only=True: no code runs"
            )
    if not names & {*_TOKENIZERS, "tokenizer_config.json"}:
        return f"has no tokenizer: expected {', '.join(_TOKENIZERS[:4])} or the like"
    return None


def config_problem(
    config: Mapping[str, Any], trust: bool, names: Iterable[str] | None = None
) -> str | None:
    """Why a model of this `config.json` cannot be used; None if nothing speaks against it.

    Args:
        config: content of the file.
        trust: the model's own code may run.
        names: files beside it, if they are known.
    """
    parts = [config, *(config[key] for key in ("text_config", "llm_config") if key in config)]
    parts = [part for part in parts if isinstance(part, Mapping)]
    for part in parts:
        method = part.get("quantization_config") or part.get("compression_config")
        if method:
            name = method.get("quant_method") if isinstance(method, Mapping) else None
            return (
                f"its weights are quantised ({name or 'quantization_config in config.json'}); "
                "expected plain float weights: give the model that it was quantised from"
            )
    kinds = config.get("architectures") or []
    kinds = [str(kind) for kind in (kinds if isinstance(kinds, list) else [kinds])]
    if config.get("is_encoder_decoder"):
        return f"{kinds[0] if kinds else 'it'} is an encoder-decoder model; {_WANTED}"
    if kinds and not any(_may_decode(kind) for kind in kinds):
        return f"{kinds[0]} is no causal language model; {_WANTED}"
    if "auto_map" in config:  # its code alone knows what the numbers mean
        return _code_problem(config, trust, names)
    if not config.get("model_type"):
        return "config.json names no model_type"
    return next(filter(None, map(_number_problem, parts)), None)


_WANTED = "expected a decoder-only one (…ForCausalLM)"


def _may_decode(kind: str) -> bool:
    """Whether a class name is not that of a head for something else (`BertForMaskedLM`)."""
    purpose = re.search(r"For([A-Z]\w*)$", kind)
    return purpose is None or purpose[1] in ("CausalLM", "ConditionalGeneration")


def _code_problem(config: Mapping[str, Any], trust: bool, names: Any) -> str | None:
    code = config["auto_map"]
    if not isinstance(code, Mapping):
        return f"config.json: auto_map is {code!r}, expected an object"
    if not trust:
        if _known_to_transformers(str(config.get("model_type"))):
            return None  # its own code is not needed
        return (
            f"its architecture ({config.get('model_type')}) comes with its own code; "
            "model.trust_remote_code=true runs it (read it first)"
        )
    wanted = [value for value in code.values() if isinstance(value, str) and "--" not in value]
    files = sorted({f"{value.rpartition('.')[0]}.py" for value in wanted})
    missing = [file for file in files if names is not None and file not in names]
    return f"its code {missing[0]} is missing; fetch the model again" if missing else None


def _known_to_transformers(kind: str) -> bool:
    """Whether the installed transformers has code for a model type, without importing it."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / "models" / "auto" / "auto_mappings.py"
    return f'"{kind}"' in file.read_text(encoding="utf-8")


def _number_problem(config: Mapping[str, Any]) -> str | None:
    for key in _SIZES:
        values = config.get(key)
        for value in values if isinstance(values, list) else [values]:
            whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
            if value is not None and not whole:
                return f"config.json: {key} is {value!r}, expected a whole number above 0"
    (width_key, width), (heads_key, heads), (kv_key, kv) = (
        _first(config, keys) for keys in (_WIDTHS, _HEADS, _KEY_HEADS)
    )
    own = any(key.endswith(_OWN_HEAD_SIZE) and config[key] is not None for key in config)
    if width and heads and not own and width % heads:
        return f"config.json: {width_key}={width} does not divide into {heads_key}={heads}"
    if heads and kv and heads % kv:
        return f"config.json: {heads_key}={heads} does not divide into {kv_key}={kv}"
    for key in ("dtype", "torch_dtype"):
        word = config.get(key)
        if word is not None and str(word).removeprefix("torch.") not in _DTYPES:
            return f"config.json: {key} is {word!r}, expected one of {', '.join(_DTYPES)}"
    return None


def _first(config: Mapping[str, Any], keys: Iterable[str]) -> tuple[str, int | None]:
    """The first of some names that has a single number, and the number."""
    found = ((key, config[key]) for key in keys if isinstance(config.get(key), int))
    return next(found, ("", None))


def _weights_problem(folder: Path, names: set[str], config: Mapping[str, Any]) -> str | None:
    """Missing, cut-off or foreign weight files, and sizes that no weight has."""
    source = next(name for name in (*_SAFETENSORS, *_PICKLES) if name in names)
    files = [source]
    if source.endswith(".index.json"):
        try:
            index = json.loads((folder / source).read_text(encoding="utf-8"))
            files = sorted(set(index["weight_map"].values()))
            index["metadata"]  # transformers asks for it
            missing = [name for name in files if not (folder / name).is_file()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{source} is no index of weights ({type(error).__name__}: {error})"
        if missing:
            return (
                f"{len(missing)} of {len(files)} weight files named in {source} are missing "
                f"({missing[0]}); the download is not complete"
            )
    pointers = [name for name in files if _starts_with(folder / name, _POINTER)]
    if pointers:
        return f"{pointers[0]} {_PULL}"
    if source in _PICKLES:
        empty = [name for name in files if not _starts_with(folder / name, b"PK", b"\x80")]
        return f"{empty[0]} holds no weights; fetch the model again" if empty else None
    tensors: dict[str, Any] = {}
    for name in files:
        problem, header = _read_header(folder / name)
        if problem:
            return f"{name} {problem}; fetch the model again"
        tensors |= header
    return _tensors_problem(tensors, config)


def _read_header(file: Path) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a safetensors file; its tensors' dtypes and shapes by name."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > _LARGEST_HEADER:
            return f"is no safetensors file (it begins with {start!r})", {}
        if 8 + length > size:
            return f"is cut off: {size:,} bytes, its header alone takes {8 + length:,}", {}
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
            end = 8 + length + max(ends, default=0)
            header = {
                name: {"dtype": str(entry["dtype"]), "shape": tuple(entry["shape"])}
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "is no safetensors file: its header cannot be read", {}
    if size != end:
        cut = "is cut off" if size < end else "is damaged"
        return f"{cut}: {size:,} bytes, its header says {end:,}", {}
    return None, header


def _tensors_problem(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Numbers of a `config.json` that no tensor of the weights bears out."""
    if not tensors:
        return "its weight files hold no tensor"
    quantised = [
        name
        for name, entry in tensors.items()
        if name.endswith(".weight") and entry["dtype"] not in _FLOATS
    ]
    if quantised:
        return (
            f"its weights are quantised ({quantised[0]} is {tensors[quantised[0]]['dtype']}); "
            "expected plain float weights: give the model that it was quantised from"
        )
    if "auto_map" in config:
        return None
    key, layers = _first(config, _LAYERS)
    if layers and layers > len(tensors):
        return f"config.json: {key}={layers}, but there are only {len(tensors)} weights"
    lengths = {length for entry in tensors.values() for length in entry["shape"]}
    for key, size in (_first(config, _WIDTHS), _first(config, ("vocab_size",))):
        if size and size not in lengths:
            return f"config.json: {key}={size}, but no weight has this size"
    return None


def _starts_with(file: Path, *starts: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(max(map(len, starts))).startswith(starts)
