"""A transformers cache whose full-attention layers are compressed once the prompt is read."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from effllm.modules.errors import UnsupportedModelError
from effllm.modules.kvcache.compression import Compression
from effllm.modules.kvcache.layer import CompressedLayer
from effllm.modules.kvcache.segment import stored_bytes


class CompressedCache(Cache):
    """Use with stock `generate`, inside `attached(model)`.

    Layers with a sliding window are left as they are: they hold little.

    Args:
        config: of the model.
        method: what is done to the prompt.
        automatic: compress each layer at the end of the first pass; set it to False to read the
            prompt in pieces, then call `compress`, or to compress it in many ways (`compressed`).

    Raises:
        UnsupportedModelError: for layers that are no attention over keys and values, and if no
            layer can be compressed.
    """

    def __init__(
        self, config: PretrainedConfig, method: Compression, *, automatic: bool = True
    ) -> None:
        layers = DynamicCache(config=config).layers
        for index, layer in enumerate(layers):
            if type(layer) is DynamicLayer:
                layers[index] = CompressedLayer(method, index, len(layers), automatic=automatic)
            elif type(layer) is not DynamicSlidingWindowLayer:
                raise UnsupportedModelError(
                    f"layer {index} of this model keeps a {type(layer).__name__}; only attention "
                    "over keys and values can be compressed"
                )
        super().__init__(layers=layers)
        if not self.compressible:
            raise UnsupportedModelError(
                f"{config.model_type}: all {len(layers)} layers have a sliding window, which hold "
                "little; there is nothing to compress"
            )

    def compress(self) -> None:
        """Compress every layer now."""
        for layer in self.compressible:
            layer.compress()

    def compressed(self, method: Compression) -> CompressedCache:
        """A compressed copy of a cache that holds a dense prompt.

        Raises:
            UnsupportedModelError: if some layers have a sliding window.
        """
        if len(self.compressible) < len(self.layers):
            raise UnsupportedModelError("a cache with sliding windows cannot be copied")
        copy = CompressedCache.__new__(CompressedCache)
        Cache.__init__(copy, layers=[one.compressed(method) for one in self.compressible])
        return copy

    @property
    def compressible(self) -> list[CompressedLayer]:
        """Layers that are compressed."""
        return [one for one in self.layers if isinstance(one, CompressedLayer)]

    def stored(self) -> dict[str, int]:
        """Bytes held, by kind; `windows` are layers with a sliding window."""
        total = {"keys": 0, "values": 0, "tail": 0, "other": 0, "windows": 0}
        layers: list[Any] = list(self.layers)  # transformers' union has kinds without states
        for layer in layers:
            if isinstance(layer, CompressedLayer):
                for name, count in layer.stored().items():
                    total[name] += count
            elif layer.is_initialized:
                total["windows"] += stored_bytes([layer.keys, layer.values])
        return total

    def nbytes(self) -> int:
        """Bytes held in all."""
        return sum(self.stored().values())

    def dense_bytes(self) -> int:
        """Bytes that the compressed layers would hold uncompressed, without spare room."""
        return sum(layer.dense_bytes for layer in self.compressible)
