"""Turn text into token windows of equal length."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from effllm.modules.errors import ConfigError, UnsupportedModelError
from effllm.modules.ranges import PositiveInt, Seed, Word
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.data import Corpus, Windows
from effllm.pipelines.stage import Metrics, Stage, StageContext

WindowLength = Annotated[
    int, Interval(ge=2, lt=2**31)
]  # nothing is predicted in a window of one token


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

    split: Word
    mode: Literal["crop", "pack", "spread"]
    num_sequences: PositiveInt | None
    sequence_length: WindowLength
    seed: Seed

    def __post_init__(self) -> None:
        if self.mode == "crop" and self.num_sequences is None:
            raise ConfigError("mode=crop needs num_sequences")

    def run(self, ctx: StageContext) -> Metrics:
        """Token ids, the document of each window, a protocol label, and a digest of the ids."""
        from effllm.modules.data.windows import crop_windows, pack_windows

        corpus = ctx.input("text", Corpus)
        model = ctx.input("model", Checkpoint)
        model.require_context(self.sequence_length, "sequence_length")
        tokenizer = model.load_tokenizer()
        if not tokenizer.is_fast:
            raise UnsupportedModelError(
                f"{type(tokenizer).__name__} does not say where its tokens begin; "
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
        Windows.write(ctx.workdir, windows, protocol, [read[index].id for index in chosen])
        return {"windows": windows.shape[0], "tokens": windows.numel(), "protocol": protocol}
