"""Týr at smoke scale through the command line, as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest
from said import read_report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tyr")
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.run", "paper=tyr", "scale=smoke", "logger=none",
         f"paths.outputs={folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"report: {folder}/reports/tyr-smoke/index.html" in done.stdout
    return folder


@pytest.fixture(scope="module")
def rows(outputs):
    figures = ("perplexity", "pareto", "allocation", "fitness")
    return read_report(outputs / "reports" / "tyr-smoke", *figures)


def test_rows_name_every_method_at_both_sparsities(rows):
    wanted = {"Random units", "Magnitude", "Wanda-sp", "FLAP-style, with bias",
              "ShortGPT, whole blocks", "ZipLM-style, second order, even",
              "Týr local pruning, even", "Týr supernet, even", "Týr, searched"}  # fmt: skip
    for sparsity in ("25 %", "50 %"):
        assert {row["method"] for row in rows if row["pattern"] == sparsity} == wanted


def test_counts_fall_with_sparsity_and_the_dense_model_diverges_from_itself_by_nothing(rows):
    of = {(row["method"], row["pattern"]): row["metrics"] for row in rows}
    dense = of["Dense", ""]
    assert dense["test/kl"] == pytest.approx(0, abs=1e-5)
    for (method, sparsity), metrics in of.items():
        if not sparsity:
            continue
        if "ShortGPT" in method and sparsity == "25 %":  # of two blocks, none is nearest
            assert metrics["parameters"] == dense["parameters"]
            continue
        assert metrics["parameters"] < dense["parameters"] and metrics["test/kl"] > 1e-4
        assert metrics["weight_file_bytes"] < dense["weight_file_bytes"]
        if sparsity == "50 %" and "ShortGPT" not in method:
            assert metrics["parameters"] < of[method, "25 %"]["parameters"]
            assert metrics["test/kl"] > of[method, "25 %"]["test/kl"]


def test_repair_by_least_squares_is_nearer_to_the_dense_model_than_no_repair(rows):
    kl = {(row["method"], row["pattern"]): row["metrics"]["test/kl"] for row in rows}
    for sparsity in ("25 %", "50 %"):
        for method in ("Random units", "Magnitude", "Wanda-sp"):
            assert kl["Týr supernet, even", sparsity] < kl[method, sparsity]


def test_a_second_run_reuses_everything(outputs):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.run", "paper=tyr", "scale=smoke", "logger=none",
         f"paths.outputs={outputs}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0 and " 0 to run" in done.stdout
