"""Load weights whole: none missing, none left over, every one a number.

transformers fills weights that a checkpoint lacks, or holds in another size, with random numbers,
and leaves out those that the model does not know; both with a warning only. A model made so would
be measured, and published, as if it were the one that was asked for.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from effllm.modules.errors import DataError

_SHOWN = 3
_PADDING = 0.1  # rows of an embedding without a token; published models have up to 0.025


def load_whole(cls: Any, where: str | Path, label: str, **options: Any) -> PreTrainedModel:
    """`cls.from_pretrained`, if all weights of the model come from the checkpoint, and no others.

    Weights that are tied to others, and those that the model class says to ignore, do not count.

    Args:
        cls: a class of transformers, such as `AutoModelForCausalLM`.
        where: folder, or name on the hub.
        label: of the model, for messages.
        **options: of `from_pretrained`.

    Returns:
        The model in eval mode.

    Raises:
        DataError: names some of the weights that are missing, unknown, or of another size.
    """
    model, report = cls.from_pretrained(
        where, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    sizes = [
        f"{name} {tuple(found)} instead of {tuple(expected)}"
        for name, found, expected in report["mismatched_keys"]
    ]
    problems = {
        "missing": report["missing_keys"],
        "of another size": sizes,
        "unknown to the model": report["unexpected_keys"],
    }
    found = [f"{len(names)} {what} ({_some(names)})" for what, names in problems.items() if names]
    if found:
        raise DataError(
            f"{label}: its weights are not those of {type(model).__name__}: {'; '.join(found)}; "
            "fetch or convert it again, or set config.json right"
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def require_finite(model: PreTrainedModel, label: str) -> None:
    """See that every weight is a finite number.

    Raises:
        DataError: names some of those that hold NaN or infinite values.
    """
    broken = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    if broken:
        raise DataError(
            f"{label}: {len(broken)} weights hold NaN or infinite values ({_some(broken)}); "
            "fetch or convert the model again"
        )


def require_matching(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: str
) -> None:
    """See that model and tokenizer belong together: every token has a row of the embedding.

    Rows without a token are padding, if they are few.

    Raises:
        DataError: if ids of the tokenizer have no row, or many rows no token.
    """
    embedding: Any = model.get_input_embeddings()
    rows = len(embedding.weight)
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if not (1 - _PADDING) * rows <= tokens <= rows:
        raise DataError(
            f"{label}: its tokenizer has {tokens:,} tokens, its embedding {rows:,} rows; expected "
            "a tokenizer of the same model (for added tokens: resize the embedding and save both)"
        )


def _some(names: Any) -> str:
    shown = sorted(names)
    return ", ".join(shown[:_SHOWN]) + (", …" if len(shown) > _SHOWN else "")
