"""Turn text into token windows of equal length."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from effllm.modules.errors import ConfigError, UnsupportedModelError
from effllm.pipelines.artifacts import Checkpoint, Corpus, Windows
from effllm.pipelines.files import write_json
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class MakeWindows(Stage):
    """Tokenise one split and cut windows from it.

    Args:
        split: split of the text.
        mode: `crop` one random crop per drawn document; `pack` the first windows of the joined
            text; `spread` windows at even distances over the joined text.
        num_sequences: windows (N); null takes all (not with crop).
        sequence_length: tokens per window (T).
        seed: of the draws; only crop draws.
    """

    VERSION: ClassVar[int] = 2  # 2: names the document of each window
    INPUTS: ClassVar = {"text": Corpus, "model": Checkpoint}
    OUTPUT: ClassVar = Windows

    split: str
    mode: Literal["crop", "pack", "spread"]
    num_sequences: int | None
    sequence_length: int
    seed: int

    def __post_init__(self) -> None:
        if self.mode not in ("crop", "pack", "spread"):
            raise ConfigError(f"mode: crop, pack or spread, found {self.mode!r}")
        if self.sequence_length < 2:
            raise ConfigError(
                f"sequence_length must be at least 2, found {self.sequence_length}: nothing is "
                "predicted in a window of one token"
            )
        if self.num_sequences is not None and self.num_sequences < 1:
            raise ConfigError(f"num_sequences must be at least 1, found {self.num_sequences}")
        if self.mode == "crop" and self.num_sequences is None:
            raise ConfigError("mode=crop needs num_sequences")

    def run(self, ctx: StageContext) -> Metrics:
        """Token ids, the document of each window, a protocol label, and a digest of the ids."""
        import hashlib

        from safetensors.torch import save_file

        from effllm.modules.data.windows import crop_windows, pack_windows

        corpus = ctx.input("text", Corpus)
        model = ctx.input("model", Checkpoint)
        model.require_context(self.sequence_length, "sequence_length")
        tokenizer = model.load_tokenizer()
        if not tokenizer.is_fast:
            raise UnsupportedModelError(
                f"{ctx.instance}: {type(tokenizer).__name__} does not say where its tokens begin; "
                "a fast tokenizer (tokenizer.json) is needed"
            )
        read = list(corpus.documents(self.split))
        texts = [document.text for document in read]

        def encode(text: str) -> tuple[list[int], list[int]]:
            found = tokenizer(text, return_offsets_mapping=True, verbose=False)
            return found["input_ids"], [begin for begin, _ in found["offset_mapping"]]

        if self.mode == "crop":
            assert self.num_sequences is not None
            windows, chosen = crop_windows(
                texts,
                encode,
                num_sequences=self.num_sequences,
                sequence_length=self.sequence_length,
                generator=ctx.generator("crop"),
            )
        else:
            windows, chosen = pack_windows(
                texts,
                encode,
                joiner=str(corpus.info["joiner"]),
                num_sequences=self.num_sequences,
                sequence_length=self.sequence_length,
                spread=self.mode == "spread",
            )
        name = f"{corpus.info['name']}-{self.split}-{windows.shape[1]}x{windows.shape[0]}"
        protocol = name if self.mode == "pack" else f"{name}-{self.mode}"
        save_file({"input_ids": windows.int()}, ctx.workdir / "windows.safetensors")
        digest = hashlib.sha256(windows.numpy().tobytes()).hexdigest()
        facts = {
            "protocol": protocol,
            "token_sha256": digest,
            "documents": [read[index].id for index in chosen],
        }
        write_json(ctx.workdir / "windows.json", facts)
        return {"windows": windows.shape[0], "tokens": windows.numel(), "protocol": protocol}
