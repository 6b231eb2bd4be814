"""The fastest way to pass a few tokens through a model on this machine.

Compiled steps where the model and the machine allow; else packed weights, for bfloat16 on a CPU;
else the model as it is. All three give the same logits but for rounding.
"""

import time
import weakref
from dataclasses import dataclass

from transformers import PreTrainedModel

from effllm.kernels.native import NoCompilerError
from effllm.modules.inference.native_step import NativeSteps, UnsuitedModelError
from effllm.modules.inference.packed import pack_linears

# Beside the models, not in them: a model stays a plain module that can be copied and saved.
_STEPS: weakref.WeakKeyDictionary[PreTrainedModel, NativeSteps] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class FastPath:
    """How a model is run.

    Attributes:
        kind: `compiled`, `packed` or `eager`.
        reason: why not compiled; empty if it is.
        seconds: of compiling and packing.
    """

    kind: str
    reason: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind} ({self.reason})" if self.reason else self.kind


def speed_up(model: PreTrainedModel) -> FastPath:
    """Let runners of a model use the fastest path there is; its weights must not change afterwards.

    Call it again after a change. A second call without one costs the packing again.
    """
    started = time.perf_counter()
    try:
        _STEPS[model] = NativeSteps(model)
        kind, reason = "compiled", ""
    except (UnsuitedModelError, NoCompilerError) as error:
        kind, reason = "packed" if pack_linears(model) else "eager", str(error)
    return FastPath(kind, reason, time.perf_counter() - started)


def compiled_steps(model: PreTrainedModel) -> NativeSteps | None:
    """What `speed_up` made for this very model, if it could."""
    return _STEPS.get(model)
