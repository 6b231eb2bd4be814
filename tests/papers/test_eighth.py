"""A paper is files: one that nobody knows is laid beside the others, and one line is added."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = Path(__file__).parent / "eighth"
START = "import sys; from effllm.pipelines.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def effllm(tmp_path_factory):
    """Runs a command of a copy of the project that has the paper; its folder is `effllm.root`."""
    root = tmp_path_factory.mktemp("project")
    unwanted = shutil.ignore_patterns("__pycache__", "local")
    for part in ("conf", "effllm", "kernels", "modules", "pipelines"):
        shutil.copytree(ROOT / part, root / part, symlinks=True, ignore=unwanted)
    for part in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / part, root)
    added = [file.relative_to(FILES) for file in FILES.rglob("*.*") if file.suffix != ".pyc"]
    assert not [file for file in added if (root / file).exists()], "an existing file would change"
    shutil.copytree(FILES, root, dirs_exist_ok=True, ignore=unwanted)
    config = root / "conf" / "config.yaml"
    before = "  - budget/arbitration: ${scale}\n"
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, f"{before}  - budget/rounding: ${{scale}}\n"))

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", START, *arguments]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.root = root
    return run


def test_a_paper_runs_to_its_page(effllm):
    settings = ["paper=rounding", "scale=smoke", "logger=none", "paths.outputs=out"]
    said = effllm("run", *settings, "budget.rounding.bits=2")
    assert "report: out/reports/rounding-smoke" in said
    folder = next((effllm.root / "out" / "reports").glob("rounding-smoke*"))
    rows = json.loads((folder / "results.json").read_text())
    assert [row["title"] for row in rows] == ["dense", "2 bits"]
    assert rows[0]["metrics"]["perplexity"] != rows[1]["metrics"]["perplexity"]
    page = (folder / "report.md").read_text()
    assert "How few bits does a weight need?" in page and "no paper, no table" in page


def test_a_paper_is_listed_and_is_a_target_of_make(effllm):
    assert "how few bits does a weight need?" in effllm("papers")
    said = subprocess.run(["make", "help"], cwd=effllm.root, capture_output=True, text=True).stdout
    assert "rounding          Round to nearest: how few bits does a weight need?" in said
    planned = subprocess.run(
        ["make", "--dry-run", "rounding", "smoke"], cwd=effllm.root, capture_output=True, text=True
    ).stdout
    assert "run paper=rounding scale=cpu" in planned and " rounding" in planned.split("for ")[-1]
