"""One call each for notebooks: prune a model, compress a cache, decode with guesses.

    masks = effllm.prune(model, tokenizer, method="sparsegpt", pattern="2:4")
    with effllm.compress_cache(model) as cache:
        model.generate(**inputs, past_key_values=cache)
    print(effllm.decoder(model, tokenizer).generate(tokens, 64).text)

Whoever wants more takes the parts that stand behind them: every method of the papers is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from effllm.modules.calibration.stream import BlockStream
from effllm.modules.data.texts import WikipediaWheel
from effllm.modules.data.windows import crop_windows
from effllm.modules.decoding.drafts import Given
from effllm.modules.decoding.joining import Decoder
from effllm.modules.decoding.proposers.base import Nothing
from effllm.modules.decoding.proposers.draft import DraftModel
from effllm.modules.decoding.proposers.lookup import PromptLookup
from effllm.modules.decoding.session import Session
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.decoding.verifiers.fly import Fly
from effllm.modules.errors import ConfigError
from effllm.modules.inference.fast_path import speed_up
from effllm.modules.kvcache.attention import attached
from effllm.modules.kvcache.cache import CompressedCache
from effllm.modules.kvcache.compression import Compression
from effllm.modules.kvcache.formats.spark import SparkKeys
from effllm.modules.sparsity.patterns import Grouped, Pattern, Unstructured
from effllm.modules.sparsity.pruners import (
    Magnitude,
    Pruner,
    RelativeImportancePruner,
    SparseGPT,
    Wanda,
)
from effllm.modules.sparsity.sequential import check_pattern, prune_block

_ARTICLES = Path(__file__).resolve().parents[1] / "conf" / "data" / "enwiki.yaml"


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str] | None = None,
    *,
    method: str = "wanda",
    pattern: str = "2:4",
    sequences: int = 32,
    length: int = 512,
    batch_size: int = 4,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Prune every linear layer of the decoder blocks, in place and at once.

    Args:
        model: on any device, in any dtype; float32 is the fastest on most processors.
        tokenizer: the model's.
        texts: documents that inputs are measured on; None: Wikipedia, from the gensim package.
        method: magnitude, wanda, ria or sparsegpt.
        pattern: removed weights of each run of inputs (`2:4`, `4:8`), or a share of all (`50%`).
        sequences: windows cut from the texts.
        length: tokens of a window.
        batch_size: windows in a pass.
        seed: of the choice of windows.

    Returns:
        (R, C) bool masks by `<block>.<layer>`, True = kept.

    Raises:
        ConfigError: for an unknown method or pattern, or one that does not fit a layer.
        DataError: if no text is longer than a window.
        UnsupportedModelError: if the model's blocks cannot be replayed one by one.
    """
    pruner, chosen = _pruner(method), _pattern(pattern)
    check_pattern(model, chosen)
    windows, _ = crop_windows(
        list(texts) if texts is not None else _articles(),
        lambda text: (tokenizer(text, verbose=False)["input_ids"], []),
        num_sequences=sequences,
        sequence_length=length,
        generator=torch.Generator().manual_seed(seed),
    )
    stream = BlockStream(model, windows, batch_size)
    masks: dict[str, Tensor] = {}
    for index in range(len(stream.blocks)):
        found = prune_block(stream, pruner, chosen).masks
        masks |= {f"{index}.{name}": mask for name, mask in found.items()}
    return masks


@contextmanager
def compress_cache(
    model: PreTrainedModel, method: Compression | None = None
) -> Iterator[CompressedCache]:
    """A cache for one call of `model.generate`, compressed once the prompt has been read.

    Args:
        model: whose attention reads the cache while the context lasts.
        method: what is done to the cache; None: SparK, four of five channels of each key go.

    Raises:
        UnsupportedModelError: for models whose attention or cache is of another kind.
    """
    with attached(model):
        yield CompressedCache(model.config, method or Compression(keys=SparkKeys(ratio=0.8)))


def decoder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: str = "lookup",
    draft: PreTrainedModel | None = None,
) -> Session:
    """A session that guesses tokens and checks them in one pass: `generate(tokens, 64).text`.

    The model runs on the fastest path of this machine: its weights must not change afterwards.

    Args:
        model: whose text is wanted.
        tokenizer: the model's.
        method: plain, one token per pass; lookup, guesses from the text so far; draft, guesses of a
            smaller model; fly, as lookup, and guesses that mean the same are kept. All but fly
            write the text of plain.
        draft: the smaller model, with the same tokenizer; for draft alone.

    Raises:
        ConfigError: for an unknown method, or a draft that is missing.
        UnsupportedModelError: if tokens cannot be taken back from the model's cache.
    """
    proposers: dict[str, Any] = {
        "plain": Nothing(),
        "lookup": PromptLookup(),
        "draft": partial(DraftModel),
        "fly": PromptLookup(),
    }
    if method not in proposers:
        raise ConfigError(f"method {method!r}: expected one of {', '.join(proposers)}")
    for one in (model, draft):
        if one is not None:
            speed_up(one)
    verifier = Fly(window=3) if method == "fly" else Exact()
    given = None if draft is None else Given(draft)
    return Decoder(proposers[method], verifier, given).join(model, tokenizer)


def _pruner(name: str) -> Pruner:
    known: dict[str, type[Pruner]] = {
        cls.name: cls for cls in (Magnitude, Wanda, RelativeImportancePruner, SparseGPT)
    }
    if name not in known:
        raise ConfigError(f"method {name!r}: expected one of {', '.join(known)}")
    return known[name]()


def _pattern(name: str) -> Pattern:
    """The pattern whose `name` this is."""
    removed, colon, group = name.partition(":")
    try:
        if colon:
            return Grouped(keep=int(group) - int(removed), group=int(group))
        return Unstructured(ratio=float(name.removesuffix("%")) / 100)
    except ValueError as error:
        raise ConfigError(
            f"pattern {name!r}: expected removed:group such as 2:4, or a share such as 50%"
        ) from error


def _articles() -> list[str]:
    """Calibration articles of the embedded text, as its file describes it."""
    settings = yaml.safe_load(_ARTICLES.read_text(encoding="utf-8"))
    del settings["_target_"]
    documents = WikipediaWheel(**settings).documents(["calibration"])["calibration"]
    return [document.text for document in documents]
