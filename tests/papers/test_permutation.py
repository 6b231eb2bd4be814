"""Learnable permutation at smoke scale through the command line, as a user runs it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from said import read_report

from effllm.modules.modeling.blocks import prunable_layers

ROOT = Path(__file__).resolve().parents[2]
FOLDED = "Wanda, learned from swaps, jointly (ours), folded in"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("permutation")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.run", "paper=permutation", "scale=smoke",
         f"paths.outputs={folder}", "logger=none"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def report(outputs):
    return outputs / "reports" / "permutation-smoke"


@pytest.fixture(scope="module")
def rows(report):
    return {row["method"]: row for row in read_report(report, "errors", "blocks", "learning")}


def test_every_order_is_a_row(rows):
    assert {"Dense", "Wanda", "Wanda, RIA", "Wanda, RIA, repeated", "Wanda, swaps on score",
            "Wanda, swaps on error", "Wanda, swaps on error, pushed on",
            "Wanda, learned from swaps, by layer (ours)",
            "Wanda, learned from swaps, jointly (ours)", "Wanda, learned, the paper's way",
            "Wanda, learned, PermLLM's way", "Wanda, swaps on error, free",
            "Wanda, learned from swaps, jointly (ours), free", FOLDED, "SparseGPT",
            "SparseGPT, swaps on error",
            } <= set(rows)  # fmt: skip


def test_searches_rank_in_their_own_objective(rows):
    efficacy = {name: row["metrics"].get("mean_efficacy") for name, row in rows.items()}
    assert efficacy["Wanda"] == 0
    assert 0 < efficacy["Wanda, best of random orders"] < efficacy["Wanda, RIA"]
    assert efficacy["Wanda, RIA"] <= efficacy["Wanda, RIA, repeated"]
    assert efficacy["Wanda, RIA, repeated"] <= efficacy["Wanda, swaps on score"]


def test_held_out_text_keeps_learning_from_doing_harm(rows):
    error = {name: row["metrics"].get("mean_heldout_error") for name, row in rows.items()}
    learned = error["Wanda, learned from swaps, by layer (ours)"]
    assert learned <= error["Wanda, swaps on error"] + 1e-7


def test_no_order_is_the_plain_pruner(outputs, rows):
    """Pruned along the identity: in the first block, whose inputs are the same, Wanda's masks."""
    masks = [
        load_file(outputs / "artifacts" / rows[name]["artifact"] / "masks.safetensors")
        for name in ("Wanda", "Wanda, inputs measured again")
    ]
    for layer in ("0.self_attn.q_proj", "0.self_attn.v_proj"):
        assert torch.equal(masks[0][layer], masks[1][layer])


def test_the_folded_model_is_the_same_model_in_plain_transformers(outputs, rows):
    """N:M along neighbours, and the perplexity of the same orders gathered while it runs."""
    from transformers import AutoModelForCausalLM

    free, folded = rows["Wanda, learned from swaps, jointly (ours), free"], rows[FOLDED]
    (name,) = {key for key in free["metrics"] if key.startswith("test/")}
    assert folded["metrics"][name] == pytest.approx(free["metrics"][name], rel=1e-3)
    model = AutoModelForCausalLM.from_pretrained(outputs / "artifacts" / folded["artifact"])
    weight = model.model.layers[1].mlp.down_proj.weight
    kept = (weight.reshape(len(weight), -1, 4) != 0).sum(dim=2)
    assert torch.equal(kept, torch.full_like(kept, 2))
    masks = load_file(outputs / "artifacts" / folded["artifact"] / "masks.safetensors")
    packed = torch.from_numpy(np.packbits((weight != 0).numpy(), axis=1))
    assert torch.equal(masks["1.mlp.down_proj"], packed)


@pytest.fixture
def folded_matrices(outputs, rows):
    """Weights of the folded model's blocks, in the type of sparse kernels."""
    from transformers import AutoModelForCausalLM

    folder = outputs / "artifacts" / rows[FOLDED]["artifact"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return [layer.read() for layer in prunable_layers(model).values()]


def test_the_folded_model_survives_the_layout_of_sparse_kernels(folded_matrices):
    """To the bit, without a GPU: what `to_sparse_semi_structured` stores, in plain torch."""
    from torch.sparse import _semi_structured_conversions as layout

    for matrix in folded_matrices:
        kept, places = layout.sparse_semi_structured_from_dense_cutlass(matrix)
        assert kept.shape == (len(matrix), matrix.shape[1] // 2)
        assert torch.equal(layout.sparse_semi_structured_to_dense_cutlass(kept, places), matrix)


@pytest.mark.gpu
def test_sparse_kernels_compute_the_same(folded_matrices):
    for matrix in folded_matrices:
        dense = matrix.cuda()
        inputs = torch.randn(64, dense.shape[1], dtype=dense.dtype, device="cuda")
        sparse = torch.sparse.to_sparse_semi_structured(dense)
        torch.testing.assert_close(
            torch.nn.functional.linear(inputs, sparse), torch.nn.functional.linear(inputs, dense)
        )


def test_the_page_has_the_papers_numbers(report):
    assert "LLaMA-2-7B, learned permutation on Wanda" in (report / "report.md").read_text()
