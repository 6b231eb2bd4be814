"""effllm's one-shot 2:4 pruning against llm-compressor's, alternating, on the same tokens.

Both arms get the same model folder, the same 32 x 512 calibration windows and the same dtype, each
in a fresh process; only the pruning itself is timed. The peer runs in an environment of its own,
made by `make bench`. Perplexity of both results is measured by the same code on the same text.
Prints a table and writes `outputs/bench/oneshot.json`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from effllm.pipelines.artifacts import write_json
from effllm.pipelines.graph import build_graph
from effllm.pipelines.launch import compose, resolve, run_command
from effllm.pipelines.store import Store

_PEER_SCRIPT = Path(__file__).with_name("peer_oneshot.py")


def main() -> None:
    """Run all pairs and print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True, help="python of llm-compressor's venv")
    parser.add_argument("--pairs", type=int, default=3, help="alternating pairs per method")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--outputs", default="outputs")
    options = parser.parse_args()
    common = ["paper=sds", "scale=cpu", f"paths.outputs={options.outputs}", "logger=none"]
    for wanted in ("calibration", "test"):
        run_command([*common, f"execute.until={wanted}"])
    store = Store(Path(options.outputs))
    folders = {
        one.name: store.folder(one.stage, one.digest)
        for one in build_graph(resolve(compose(common))[0], store)
    }
    arms = {
        "effllm": [sys.executable, "-m", "effllm.pipelines.bench.our_oneshot"],
        "llm-compressor": [options.peer_python, str(_PEER_SCRIPT)],
    }
    results = []
    for method in ("sparsegpt", "wanda"):
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        found: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as scratch:
            for pair in range(options.pairs):
                order = list(arms) if pair % 2 == 0 else list(reversed(arms))
                for arm in order:
                    job = {
                        "model": str(folders["base"].resolve()),
                        "windows": str((folders["calibration"] / "windows.safetensors").resolve()),
                        "method": method,
                        "dtype": options.dtype,
                        "batch_size": 4 if arm == "effllm" else 1,
                        "result": str(Path(scratch) / arm),
                    }
                    times[arm].append(_run(arms[arm], job, Path(scratch) / "job.json"))
                    print(f"{method} pair {pair + 1} {arm}: {times[arm][-1]:.1f} s", flush=True)
            for arm in arms:
                found[arm] = _perplexity(Path(scratch) / arm, folders["test"], options.dtype)
        ratios = [b / a for a, b in zip(times["effllm"], times["llm-compressor"], strict=True)]
        results.append({"method": method, "seconds": times, "ratios": ratios, "ppl": found})
        print(
            f"{method}: {sum(ratios) / len(ratios):.2f} times faster "
            f"[{min(ratios):.2f}, {max(ratios):.2f}] (lowest and highest pair); "
            f"test perplexity {found['effllm']:.2f} against {found['llm-compressor']:.2f}"
        )
    target = store.root / "bench" / "oneshot.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, {"dtype": options.dtype, "results": results})


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
    from transformers import AutoModelForCausalLM

    from effllm.modules.evaluation.perplexity import perplexity, window_nll

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).eval()
    windows = load_file(windows_folder / "windows.safetensors")["input_ids"].long()
    return perplexity(window_nll(model, windows, batch_size=8))


if __name__ == "__main__":
    main()
