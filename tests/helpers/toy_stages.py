"""Stages that take no time, for tests of the engine."""

import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from effllm.modules.errors import NumericalError
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.measured import Predictions, Report
from effllm.pipelines.engine import graph
from effllm.pipelines.files import write_json, write_rows
from effllm.pipelines.stage import Many, Stage

build_graph = partial(graph.build_graph, packages=("toy_stages",))


class Numbers(Artifact):
    """A JSON list of numbers."""

    kind = "numbers"

    @property
    def values(self):
        return self.read_json("numbers.json")


@dataclass(frozen=True, kw_only=True)
class Count(Stage):
    """The first `size` numbers, drawn with a seed."""

    OUTPUT: ClassVar = Numbers
    VOLATILE: ClassVar = frozenset({"workers"})

    size: int
    seed: int = 0
    workers: int = 1

    def run(self, ctx):
        import torch

        numbers = torch.rand(self.size, generator=ctx.generator("numbers")).tolist()
        write_json(ctx.workdir / "numbers.json", numbers)
        return {"size": self.size}


@dataclass(frozen=True, kw_only=True)
class Scale(Stage):
    """Multiply by a factor."""

    INPUTS: ClassVar = {"numbers": Numbers}
    OUTPUT: ClassVar = Numbers

    factor: float

    def run(self, ctx):
        numbers = [self.factor * value for value in ctx.input("numbers", Numbers).values]
        write_json(ctx.workdir / "numbers.json", numbers)
        return {"sum": sum(numbers)}


@dataclass(frozen=True, kw_only=True)
class Collect(Stage):
    """One row per input."""

    INPUTS: ClassVar = {"numbers": Many(Numbers)}
    OUTPUT: ClassVar = Predictions

    def run(self, ctx):
        rows = [{"sum": sum(a.values)} for a in ctx.input_list("numbers", Numbers)]
        write_rows(ctx.workdir / "predictions.jsonl", rows)
        return {"rows": len(rows)}


@dataclass(frozen=True, kw_only=True)
class Tensors(Stage):
    """A file of tensors."""

    def run(self, ctx):
        import torch
        from safetensors.torch import save_file

        save_file({"ones": torch.ones(2)}, ctx.workdir / "tensors.safetensors")
        return {}


@dataclass(frozen=True, kw_only=True)
class Stepwise(Stage):
    """Adds one number per step and stores progress; dies at a step if a file `<fault>` exists.

    The fault file holds `<kind> <step>`; kinds are kill (SIGKILL), interrupt, error, disk.
    Every step that is computed leaves a line in the file `<fault>.steps`.
    """

    OUTPUT: ClassVar = Numbers
    VOLATILE: ClassVar = frozenset({"fault"})

    steps: int
    fault: str

    def run(self, ctx):
        import torch

        fault = Path(self.fault)
        kind, _, place = fault.read_text().partition(" ") if fault.exists() else ("", "", "-1")
        for step in range(self.steps):
            if ctx.load_progress(f"step-{step}") is not None:
                continue
            if step == int(place):
                (ctx.workdir / "half-written.json").write_text("{")
                if kind == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif kind == "interrupt":
                    raise KeyboardInterrupt
                elif kind == "disk":
                    raise OSError(28, "No space left on device")
                raise NumericalError(f"step {step} is not finite")
            with Path(f"{self.fault}.steps").open("a") as record:
                record.write(f"{step}\n")
            ctx.save_progress(f"step-{step}", {"value": torch.tensor([float(step)])})
            ctx.progress(step + 1, self.steps, "step")
        values = [float(ctx.load_progress(f"step-{step}")["value"]) for step in range(self.steps)]
        write_json(ctx.workdir / "numbers.json", values)
        return {}


@dataclass(frozen=True, kw_only=True)
class Learn(Stage):
    """Logs a falling loss, twice from the first step on."""

    OUTPUT: ClassVar = Numbers

    def run(self, ctx):
        for seed in range(2):
            for step in range(1, 4):
                ctx.log({f"seed-{seed}/loss": 1 / step + seed}, step)
        write_json(ctx.workdir / "numbers.json", [1 / 3])
        return {"loss": 1 / 3}


@dataclass(frozen=True, kw_only=True)
class ReportToys(Stage):
    """A page with a figure and two result rows."""

    INPUTS: ClassVar = {"numbers": Many(Numbers)}
    OUTPUT: ClassVar = Report

    def run(self, ctx):
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot

        (ctx.workdir / "figures").mkdir(exist_ok=True)
        pyplot.figure(figsize=(1, 1)).savefig(ctx.workdir / "figures" / "sums.png")
        pyplot.close()
        (ctx.workdir / "index.html").write_text("<h1>Toys</h1>")
        numbers = ctx.input_list("numbers", Numbers)
        rows = [
            {"method": f"toy {one}", "pattern": "2:4", "seed": None,
             "metrics": {"sum": sum(artifact.values)}, "intervals": {"sum": [0, 1]}}
            for one, artifact in enumerate(numbers)
        ]  # fmt: skip
        write_json(ctx.workdir / "results.json", rows)
        return {}


def manifest_of(instance):
    """A manifest for a payload that no stage has made."""
    return {
        "stage": instance.stage,
        "instance": instance.name,
        "kind": instance.cls.OUTPUT.kind,
        "target": instance.target,
        "digest": instance.digest,
        "code": {"fingerprint": instance.code},
        "timing": {"seconds": 0.0, "finished": "2026-01-01T00:00:00+00:00"},
        "warnings": [],
        **{part: {} for part in ("config", "inputs", "sources", "metrics", "env")},
    }
