"""Whatever goes wrong is one line on standard error, and exit code 1."""

import json
import logging
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from effllm.modules.errors import ConfigError
from effllm.pipelines.cli import main
from effllm.pipelines.commands import inspect_store
from effllm.pipelines.commands.catalogue import swappable
from effllm.pipelines.commands.verbs import app
from effllm.pipelines.engine.executor import Run

ROOT = Path(__file__).resolve().parents[2]
VERBS = [one.name or one.callback.__name__ for one in app.registered_commands]
VERB = "import sys; from effllm.pipelines.cli import main; sys.exit(main(sys.argv[1:]))"


def failing(error):
    def fail(*arguments):
        raise error

    return fail


def test_an_error_nobody_foresaw_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger("effllm"), "handlers", [])  # no run before has a log
    monkeypatch.setattr(inspect_store, "list_results", failing(RuntimeError("first\nsecond")))
    assert main(["ls"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "RuntimeError: first (unexpected; --traceback shows where it arose)"
    assert main(["ls", "--traceback"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("Traceback") and told[-1] == line


def test_an_error_nobody_foresaw_in_a_run_is_in_its_log(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["effllm"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(Run, "execute", failing(LookupError("no such thing")))
    assert main(["run", "paper=sds", "scale=smoke", f"paths.outputs={tmp_path}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (file,) = tmp_path.glob("runs/sds/*/run.log")
    assert line == f"LookupError: no such thing (unexpected; the full traceback is in {file})"
    assert "test_console.py" in file.read_text() and "Traceback" in file.read_text()


def test_several_errors_are_a_line_each(monkeypatch, capsys):
    monkeypatch.setattr(inspect_store, "list_results", failing(ConfigError("a: 1\nb: 2")))
    assert main(["ls"]) == 1
    assert capsys.readouterr().err.splitlines() == ["ConfigError: a: 1", "ConfigError: b: 2"]


def test_an_unknown_verb_is_one_line(capsys):
    assert main(["dance"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "ConfigError: unknown verb 'dance'; see effllm --help"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shwo", "prune/3f"], "unknown verb 'shwo', did you mean show? see effllm --help"),
        (["show"], "effllm show: Missing argument 'REF'; see effllm show --help"),
        (["run", "--fast"], "effllm run: No such option: --fast; see effllm run --help"),
        (["run", "paper=sds", "--cfg", "jobs"], "effllm run: Invalid value for '--cfg'"),
        (["options", "prunner"], "no group 'prunner'; did you mean pruner?"),
        (["run"], "which paper? give paper=sds, for example; effllm papers lists them"),
        (["plan", "paper=sds", "scael=cpu"], "scael: the configuration has no key scael; did you"),
        (
            ["plan", "paper=sds", "pruner@pipeline.wanda_half.prune.prunr=ria"],
            "pruner@pipeline.wanda_half.prune.prunr: nothing is chosen there; did you mean "
            "pruner@pipeline.wanda_half.prune.pruner?",
        ),
    ],
    ids=" ".join,
)
def test_what_was_mistyped_is_told_on_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ConfigError: {message}")


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_every_verb_has_a_page_with_examples_and_imports_nothing_heavy(verb):
    code = (
        "import sys; from effllm.pipelines.cli import main\n"
        "assert main([*sys.argv[1:], '--help']) == 0\n"
        "heavy = [m for m in ('torch', 'transformers', 'hydra') if m in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    command = [sys.executable, "-c", code, *([verb] if verb else [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    wanted = [f"  effllm {verb}", "Examples:"] if verb else [f"\n  {one} " for one in VERBS]
    assert all(text in done.stdout for text in wanted)
    assert max(map(len, done.stdout.splitlines())) <= 90


def test_papers_and_options_say_a_sentence_each(capsys):
    assert main(["papers"]) == 0
    shown = capsys.readouterr().out
    assert "\nsds " in shown and "At cpu scale: 20 to 30 min" in " ".join(shown.split())
    for group in swappable():
        assert main(["options", group, "--json"]) == 0
        about = json.loads(capsys.readouterr().out)
        assert about and all(about.values()), group


def completed(shell, typed):
    """What the shell is offered at the end of `typed`, asked as its script asks."""
    words = typed.split(" ")
    if shell == "bash":  # it splits at "=" too
        words = [part for word in words for part in re.split("(=)", word) if part or word == ""]
        asked = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        asked = {"_TYPER_COMPLETE_ARGS": typed}
    environment = {**os.environ, "_EFFLLM_COMPLETE": f"complete_{shell}", **asked}
    done = subprocess.run(
        [sys.executable, "-c", VERB], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and not done.stderr
    return re.findall(r"[\w=@/.-]+", done.stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("effllm opt", "options"),
        ("effllm run pap", "paper=sds"),
        ("effllm run paper=sd", "sds"),
        ("effllm plan paper=sds scale=", "smoke"),
        ("effllm run paper=sds pruner@pipeline.wanda_half.prune.pruner=sp", "sparsegpt"),
        ("effllm generate decoder=lo", "lookup"),
        ("effllm options pru", "pruner"),
    ],
)
def test_the_shell_is_offered_what_there_is(shell, typed, offered):
    found = completed(shell, typed)
    if shell == "zsh" and "=" in typed:
        offered = f"{typed.split(' ')[-1].partition('=')[0]}={offered}"
    assert offered in found


def test_the_shell_is_offered_digests(execute, store, pipeline):
    execute(pipeline, until="count")
    ((folder, _),) = store.manifests()
    typed = f"effllm show --outputs {store.root} count/"
    assert completed("zsh", typed)[-1] == f"count/{folder.name}"


def test_a_folder_that_does_not_exist_holds_no_sound_results(capsys, tmp_path):
    assert main(["verify", "--outputs", str(tmp_path / "mistyped")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"ArtifactError: --outputs {tmp_path}/mistyped: there is no such folder"


def test_an_interruption_that_a_library_made_an_error_of_is_one(monkeypatch, capsys):
    def wrapped(*arguments):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise ImportError("initialisation failed") from error

    monkeypatch.setattr(inspect_store, "list_results", wrapped)
    assert main(["ls"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command resumes\n"


def effllm(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", VERB, *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = effllm("--help", stdout=full)
    assert done.returncode == 1
    expected = "EffLLMError: cannot write to standard output: No space left on device"
    assert done.stderr.splitlines() == [expected]


def test_a_reader_that_goes_away_stops_a_run_with_one_line(tmp_path):
    """Not with exit code 0: the work is not done."""
    reader, writer = os.pipe()
    os.close(reader)
    run = ["run", "paper=sds", "scale=smoke", f"paths.outputs={tmp_path}", "logger=none"]
    done = effllm(*run, "execute.until=heldout", stdout=writer)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["EffLLMError: cannot write to standard output: Broken pipe"]


@pytest.mark.skipif(not os.path.exists("/proc"), reason="no /proc")
def test_outputs_that_cannot_be_made_are_one_line():
    done = effllm("run", "paper=sds", "scale=smoke", "paths.outputs=/proc/effllm")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("ArtifactError: /proc/effllm: ") and "paths.outputs=" in line


def test_a_log_that_cannot_be_written_is_said_once(monkeypatch, capsys, tmp_path):
    from effllm.pipelines.commands import launch

    launch._log_to(tmp_path)
    (handler,) = launch.logging.getLogger("effllm").handlers
    monkeypatch.setattr(handler, "format", failing(OSError(28, "No space left on device")))
    for _ in range(3):
        launch.logging.getLogger("effllm").info("done")
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.log: [Errno 28] No space left on device; nothing more is logged" in line
    handler.close()


def test_results_can_be_read_by_whom_the_umask_lets(execute, store):
    """Safetensors makes files that only their owner can read."""
    before = os.umask(0o027)
    try:
        execute({"tensors": {"_target_": "toy_stages.Tensors"}})
    finally:
        os.umask(before)
    files = [file for file in store.artifacts.rglob("*") if file.is_file()]
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in files} == {
        "manifest.json": 0o640,
        "tensors.safetensors": 0o640,
    }


def test_progress_can_be_read_by_whom_the_umask_lets(tmp_path, execute, store):
    fault = tmp_path / "fault"
    fault.write_text("error 1")
    before = os.umask(0o007)
    try:
        with pytest.raises(Exception, match="step 1"):
            execute({"long": {"_target_": "toy_stages.Stepwise", "steps": 2, "fault": str(fault)}})
    finally:
        os.umask(before)
    (file,) = (store.root / "work").rglob("*.safetensors")
    assert stat.S_IMODE(file.stat().st_mode) == 0o660
