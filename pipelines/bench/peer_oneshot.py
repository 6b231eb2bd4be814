"""One-shot pruning by llm-compressor; runs in llm-compressor's own environment, without effllm.

Usage: python peer_oneshot.py JOB.json, where the job names model folder, windows, method, dtype
and the folder for the result. Prints `{"seconds": ...}` on its last line. Only `oneshot` is timed.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main() -> None:
    """Prune, save, print the seconds."""
    job = json.loads(Path(sys.argv[1]).read_text())
    modifier = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[job["method"]]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    windows = load_file(job["windows"])["input_ids"].tolist()
    data = Dataset.from_dict(
        {"input_ids": windows, "attention_mask": [[1] * len(windows[0])] * len(windows)}
    )
    started = time.perf_counter()
    oneshot(
        model=model,
        dataset=data,
        # A plain "lm_head" in `ignore` matches nothing: the head, and with it the tied embedding,
        # would be pruned as well.
        recipe=modifier(
            sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=["re:.*lm_head"]
        ),
        num_calibration_samples=len(windows),
        max_seq_length=len(windows[0]),
        shuffle_calibration_samples=False,
        batch_size=job["batch_size"],
    )
    seconds = time.perf_counter() - started
    model.save_pretrained(job["result"])
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
