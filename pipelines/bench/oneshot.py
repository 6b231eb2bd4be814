"""effllm's one-shot 2:4 pruning against llm-compressor's, alternating, on the same tokens.

Both arms get the same model folder, the same 32 x 512 calibration windows (another draw for every
pair) and the same dtype, each in a fresh process; only the pruning itself is timed. The peer runs
in an environment of its own, made by `make bench`. Perplexity of both results is measured by the
same code on the same text. Prints a line per run and writes `outputs/bench/oneshot.json`.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from effllm.modules.evaluation.intervals import Interval, over_seeds
from effllm.pipelines.commands.composing import compose, resolve
from effllm.pipelines.commands.launch import run_command
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.store import Store
from effllm.pipelines.files import write_json

_WINDOWS = "windows.safetensors"
_PEER_SCRIPT = Path(__file__).with_name("peer_oneshot.py")


def main() -> None:
    """Run all pairs and print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True, help="python of llm-compressor's venv")
    parser.add_argument("--pairs", type=int, default=3, help="alternating pairs, two or more")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--outputs", default="outputs")
    options = parser.parse_args()
    folders = [_prepared(options.outputs, seed) for seed in range(options.pairs)]
    arms = {
        "effllm": [sys.executable, "-m", "effllm.pipelines.bench.our_oneshot"],
        "llm-compressor": [options.peer_python, str(_PEER_SCRIPT)],
    }
    results = []
    for method in ("sparsegpt", "wanda"):
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        found: dict[str, list[float]] = {arm: [] for arm in arms}
        for pair, inputs in enumerate(folders):
            order = list(arms) if pair % 2 == 0 else list(reversed(arms))
            with tempfile.TemporaryDirectory() as scratch:
                for arm in order:
                    result = Path(scratch) / arm
                    job = {
                        "model": str(inputs["base"].resolve()),
                        "windows": str((inputs["calibration"] / _WINDOWS).resolve()),
                        "method": method,
                        "dtype": options.dtype,
                        "batch_size": 4 if arm == "effllm" else 1,
                        "result": str(result),
                    }
                    seconds[arm].append(_run(arms[arm], job, Path(scratch) / "job.json"))
                    found[arm].append(_perplexity(result, inputs["test"], options.dtype))
                    print(
                        f"{method} pair {pair + 1} {arm}: {seconds[arm][-1]:.1f} s, "
                        f"test perplexity {found[arm][-1]:.2f}",
                        flush=True,
                    )
        speed = _ratio(seconds["llm-compressor"], seconds["effllm"])
        quality = _ratio(found["effllm"], found["llm-compressor"])
        results.append(
            {
                "method": method,
                "seconds": seconds,
                "perplexity": found,
                "speed_ratio": vars(speed),
                "perplexity_ratio": vars(quality),
            }
        )
        print(
            f"{method}: {speed.value:.2f} times faster [{speed.low:.2f}, {speed.high:.2f}], "
            f"perplexity {quality.value:.3f} times the peer's [{quality.low:.3f}, "
            f"{quality.high:.3f}]; Student's t over {options.pairs} pairs, each with its own draw "
            "of calibration windows"
        )
    target = Path(options.outputs) / "bench" / "oneshot.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, {"dtype": options.dtype, "results": results})


def _prepared(outputs: str, seed: int) -> dict[str, Path]:
    """Folders of the model, of the calibration windows of a seed, and of the test windows."""
    common = ["paper=sds", "scale=cpu", f"seed={seed}", f"paths.outputs={outputs}", "logger=none"]
    for wanted in ("calibration", "test"):
        run_command([*common, f"execute.until={wanted}"])
    store = Store(Path(outputs))
    graph = build_graph(resolve(compose(common))[0], store)
    return {one.name: store.folder(one.stage, one.digest) for one in graph}


def _ratio(top: list[float], bottom: list[float]) -> Interval:
    """Geometric mean of paired ratios, with its interval over pairs."""
    import numpy as np

    logs = over_seeds(np.log(top) - np.log(bottom))
    return Interval(*(math.exp(one) for one in (logs.value, logs.low, logs.high)))


def _run(command: list[str], job: dict[str, Any], file: Path) -> float:
    """Seconds that one arm reports.

    The peer reads its calibration set one window at a time: its collator cannot batch token ids.
    """
    write_json(file, job)
    done = subprocess.run([*command, str(file)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def _perplexity(model_folder: Path, windows_folder: Path, dtype: str) -> float:
    from safetensors.torch import load_file

    from effllm.modules.evaluation.perplexity import perplexity, window_nll
    from effllm.modules.modeling.checkpoints import load_any

    model = load_any(model_folder, dtype)
    windows = load_file(windows_folder / "windows.safetensors")["input_ids"].long()
    return perplexity(window_nll(model, windows, batch_size=8))


if __name__ == "__main__":
    main()
