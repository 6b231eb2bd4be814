"""A split of scikit-learn's digits."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from effllm.modules.ranges import PositiveInt
from effllm.pipelines.artifacts.data import Images
from effllm.pipelines.stage import Metrics, Stage, StageContext


@dataclass(frozen=True, kw_only=True)
class MakeDigits(Stage):
    """Take pictures of one split.

    Args:
        split: train, heldout or test.
        number: first so many pictures; null: all.
    """

    OUTPUT: ClassVar = Images

    split: Literal["train", "heldout", "test"]
    number: PositiveInt | None

    def run(self, ctx: StageContext) -> Metrics:
        """Pixels and classes."""
        from effllm.modules.vision.digits import digits

        pixels, labels = (tensor[: self.number] for tensor in digits(self.split))
        Images.write(ctx.workdir, pixels, labels, f"digits-{self.split}-{len(pixels)}")
        return {"pictures": len(pixels)}
