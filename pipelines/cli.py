"""The command line: `effllm <verb> …`, with every failure told in a line, and exit codes.

The verbs are in `commands/verbs.py`. Nothing here imports torch, so help and plans appear at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from effllm.modules.errors import ConfigError, EffLLMError
from effllm.pipelines.engine import interrupts


def entry() -> None:
    """Console script."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one verb; the exit code.

    Whatever goes wrong is told on standard error, one line per problem.
    """
    traceback = "--traceback" in arguments
    with interrupts.listening():
        try:
            code = _run_verb([one for one in arguments if one != "--traceback"])
            sys.stdout.flush()  # at exit nobody could be told of a full disk
            return code
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            _give_up_output()
            return 0
        except KeyboardInterrupt:
            return _interrupted()
        except Exception as error:  # noqa: BLE001 - the last place where it can be told
            if interrupts.asked():  # some imports make an error of their own of it
                return _interrupted()
            if traceback:
                sys.excepthook(*sys.exc_info())
            if isinstance(error, OSError) and error.filename is None and _output_is_full():
                error = EffLLMError(f"cannot write to standard output: {error.strerror}")
            _give_up_output()
            for line in _lines(error):
                print(f"{type(error).__name__}: {line}", file=sys.stderr)
            return 1


def _run_verb(arguments: list[str]) -> int:
    from typer.exceptions import Exit, TyperException
    from typer.main import get_command

    from effllm.pipelines.commands.verbs import app

    program = get_command(app)
    if "_EFFLLM_COMPLETE" in os.environ:  # the shell asks at a TAB
        program.main(prog_name="effllm")
    if not arguments or arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    try:
        with program.make_context("effllm", arguments) as context:
            return int(program.invoke(context))
    except Exit as end:
        return end.exit_code
    except TyperException as error:
        verb = getattr(error, "ctx", None)
        path = verb.command_path if verb else "effllm"
        message = error.format_message().rstrip(".")
        raise ConfigError(f"{path}: {message}; see {path} --help") from error


def _lines(error: Exception) -> list[str]:
    """What a person is told: of our errors all lines, of others the first and where the rest is."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, EffLLMError):
        return lines
    handlers = logging.getLogger("effllm").handlers
    file = next((one.baseFilename for one in handlers if isinstance(one, logging.FileHandler)), "")
    if file:
        logging.getLogger("effllm").error("unexpected error", exc_info=error)
    rest = f"the full traceback is in {file}" if file else "--traceback shows where it arose"
    return [f"{' '.join(lines[:1]) or 'no message'} (unexpected; {rest})"]


def _interrupted() -> int:
    print("interrupted; the same command resumes", file=sys.stderr)
    return 130


def _output_is_full() -> bool:
    try:
        print(flush=True)
        return False
    except OSError:
        return True


def _give_up_output() -> None:
    """Let Python's own flush at exit meet no error, if standard output takes nothing more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
