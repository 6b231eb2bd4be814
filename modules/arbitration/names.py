"""Words that settings choose from, without torch, so that a plan needs none."""

from typing import Literal

Network = Literal["linear", "mlp"]
FeatureSet = Literal["all", "target", "draft"]
Labels = Literal["verdict", "same_answer", "shuffled"]
