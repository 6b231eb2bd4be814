"""SDS at smoke scale through the command line, as a user runs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from said import read_report

ROOT = Path(__file__).resolve().parents[2]


def effllm(*arguments, folder):
    return subprocess.run(
        [sys.executable, "-m", "pipelines.run", *arguments]
        if arguments[0] != "verb"
        else [sys.executable, "-c", _VERB, *arguments[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


_VERB = "import sys; from effllm.pipelines.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sds")
    done = effllm("paper=sds", "scale=smoke", f"paths.outputs={folder}", folder=folder)
    assert done.returncode == 0, done.stderr
    assert f"report: {folder}/reports/sds-smoke/index.html" in done.stdout
    return folder


@pytest.fixture(scope="module")
def rows(outputs):
    return read_report(outputs / "reports" / "sds-smoke", "perplexity", "weights", "layer_errors")


def test_all_methods_and_patterns_have_rows(rows):
    assert {row["pattern"] for row in rows} == {"", "2:4", "4:8", "50%"}
    methods = {row["method"] for row in rows}
    assert {"Dense", "Magnitude", "Wanda", "SparseGPT"} <= methods
    assert {"SparseGPT + refit", "SparseGPT + IHT", "SDS (SparseGPT)", "SDS (Wanda)"} <= methods


def test_layer_errors_rank_as_they_must(rows):
    """On the dense model's held-out inputs: dense 0, magnitude worst; refit keeps the mask."""
    error = {(row["method"], row["pattern"]): row["metrics"]["layer_error"] for row in rows}
    assert error["Dense", ""] == 0
    for pattern in ("2:4", "4:8", "50%"):
        assert error["SparseGPT", pattern] < error["Wanda", pattern]
        assert error["Wanda", pattern] < error["Magnitude", pattern]
    assert error["SparseGPT", "4:8"] < error["SparseGPT", "2:4"]
    assert error["Wanda + refit", "2:4"] < error["Wanda", "2:4"]
    assert error["SparseGPT, re-dense only (D)", "2:4"] < error["SparseGPT", "2:4"]


def test_the_report_names_its_model(outputs):
    folder = outputs / "reports" / "sds-smoke"
    assert "tiny random model" in (folder / "index.html").read_text()
    assert "| Dense |" in (folder / "report.md").read_text()


def test_a_second_run_reuses_everything(outputs):
    done = effllm("paper=sds", "scale=smoke", f"paths.outputs={outputs}", folder=outputs)
    assert done.returncode == 0 and " 0 to run" in done.stdout
    plan = effllm(
        "verb",
        "plan",
        "paper=sds",
        "scale=smoke",
        f"paths.outputs={outputs}",
        "--json",
        folder=outputs,
    )
    statuses = {row["status"] for row in json.loads(plan.stdout)}
    assert statuses == {"hit", "not needed"}


def test_the_verbs_answer(outputs):
    def verb(*arguments):
        return effllm("verb", *arguments, "--outputs", str(outputs), folder=outputs)

    listed = json.loads(verb("ls", "--json").stdout)
    reference = next(row["ref"] for row in listed if row["ref"].startswith("prune/"))
    other = next(row["ref"] for row in listed if row["ref"].startswith("redense/"))
    assert "layer_error" in verb("show", reference).stdout
    assert json.loads(verb("show", reference, "--json").stdout)["stage"] == "prune"
    assert "stage" in verb("diff", reference, other).stdout
    assert "0 damaged" in verb("verify").stdout
    assert "# SDS" in verb("report", "sds-smoke").stdout
    assert json.loads(verb("report", "--json").stdout) == ["sds-smoke"]
    assert "0 folders" in verb("gc").stdout
    missing = verb("show", "prune/ffffffffffff")
    assert missing.returncode == 1 and missing.stderr.startswith("ArtifactError:")
    assert verb("dance").returncode == 1


def test_verify_names_a_damaged_file(outputs, tmp_path):
    import shutil

    copy = tmp_path / "outputs"
    shutil.copytree(outputs / "artifacts", copy / "artifacts")
    file = next((copy / "artifacts" / "redense").glob("*/model.safetensors"))
    with file.open("r+b") as stream:
        stream.seek(2000)
        stream.write(b"\x01\x02\x03\x04")
    done = effllm("verb", "verify", "--outputs", str(copy), folder=copy)
    assert done.returncode == 1 and "model.safetensors" in done.stdout


def test_unknown_options_end_with_one_line_and_exit_code_one(outputs):
    for arguments in (
        ["paper=sds", "bugdet.x=1"],
        ["paper=sdss"],
        ["paper=sds", "execute.until=x"],
        ["paper=sds", "--bogus"],
    ):
        done = effllm(*arguments, "scale=smoke", f"paths.outputs={outputs}", folder=outputs)
        assert done.returncode == 1
        assert done.stderr.startswith("ConfigError:") and len(done.stderr.splitlines()) == 1
    for arguments in (["ls", "--bogus"], ["show"]):
        done = effllm("verb", *arguments, folder=outputs)
        assert done.returncode == 1
        assert done.stderr.startswith("ConfigError:") and len(done.stderr.splitlines()) == 1


def payloads(folder):
    """Checksums of every result but the report, which holds times."""
    return {
        path.parent.relative_to(folder): json.loads(path.read_text())["outputs"]
        for path in folder.glob("artifacts/*/*/manifest.json")
        if path.parent.parent.name != "report_sds"
    }


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(outputs, tmp_path):
    """SIGKILL while or right after every twelfth stage of the real pipeline, then to the end."""
    command = [sys.executable, "-m", "pipelines.run", "paper=sds", "scale=smoke", "logger=none"]
    command.append(f"paths.outputs={tmp_path}")
    done = 0
    while True:
        finished = 0
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
            for line in run.stdout:
                finished += bool(re.match(r"\[ *\d+/\d+\].* s  ", line))
                if finished == 12:
                    run.kill()
        if run.wait() == 0:
            break
        assert run.returncode == -9
        published = len(payloads(tmp_path))
        assert published >= done + 12  # what was complete stays, and nothing is made twice
        done = published
    assert done > 60
    assert payloads(tmp_path) == payloads(outputs)
