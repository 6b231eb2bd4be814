"""One-shot pruning by effllm for the comparison with llm-compressor.

Usage: python -m effllm.pipelines.bench.our_oneshot JOB.json, the same job as `peer_oneshot.py`.
Prints `{"seconds": ...}` on its last line. Only statistics and pruning are timed, as for the peer.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Prune, save, print the seconds."""
    from safetensors.torch import load_file

    from effllm.modules.calibration.stream import BlockStream
    from effllm.modules.modeling.checkpoints import load_any
    from effllm.modules.sparsity.patterns import Grouped
    from effllm.modules.sparsity.pruners import SparseGPT, Wanda
    from effllm.modules.sparsity.sequential import prune_block
    from effllm.pipelines.commands.memory import keep_freed_memory

    keep_freed_memory()
    job = json.loads(Path(sys.argv[1]).read_text())
    pruner = {"sparsegpt": SparseGPT, "wanda": Wanda}[job["method"]]()
    model = load_any(Path(job["model"]), job["dtype"])
    windows = load_file(job["windows"])["input_ids"].long()
    started = time.perf_counter()
    stream = BlockStream(model, windows, job["batch_size"])
    for _ in range(len(stream.blocks)):
        prune_block(stream, pruner, Grouped(keep=2, group=4))
    seconds = time.perf_counter() - started
    model.save_pretrained(job["result"])
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
