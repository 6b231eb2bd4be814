"""The command line: `effllm <verb> …`.

`run` and `plan` take Hydra overrides (`effllm run paper=sds scale=cpu`); the other verbs look at
the store. Nothing here imports torch, so help and plans appear at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from effllm import __version__
from effllm.modules.errors import ArtifactError, ConfigError, EffLLMError
from effllm.pipelines.engine import interrupts

USAGE = """\
effllm <verb> [options]

  run     KEY=VALUE…   run a pipeline:      effllm run paper=sds scale=cpu
                       sweep with -m:       effllm run -m paper=sds seed=0,1,2
  plan    KEY=VALUE…   show what a run would do, without doing it
  generate PROMPT      continue a text: effllm generate "Why is the sky blue?" decoder=lookup
  ls      [STAGE]      list stored results
  show    REF          one result: configuration, inputs, metrics, files
  diff    REF REF      what differs between two results
  verify  [REF…]       check stored files against their checksums
  gc      [--yes]      remove results that no run refers to, and abandoned work
  doctor               check this machine and what is installed
  report  [NAME]       list reports, or print one

REF is [STAGE/]DIGEST-PREFIX. Options that several verbs take: --outputs DIR, --json. With
--traceback an error shows where it arose.
Configuration groups and papers: effllm run --help. Exit codes: 0 done, 1 failed,
130 interrupted (the same command resumes).
"""


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
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb == "run":
        from effllm.pipelines.commands.launch import run_command

        return run_command(rest)
    if verb == "plan":
        from effllm.pipelines.commands.launch import plan_command

        return plan_command(rest)
    if verb == "generate":
        from effllm.pipelines.commands.generate import generate_command

        return generate_command(rest)
    from effllm.pipelines.commands import inspect_store

    handler = inspect_store.VERBS.get(verb)
    if handler is None:
        raise ConfigError(f"unknown verb {verb!r}; see effllm --help")
    parser = Parser(prog=f"effllm {verb}", description=handler.__doc__)
    parser.add_argument(
        "--outputs",
        default="outputs",
        type=os.path.expanduser,
        help="output folder (default: outputs)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    inspect_store.add_arguments(verb, parser)
    options = parser.parse_args(rest)
    if options.outputs != parser.get_default("outputs") and not Path(options.outputs).is_dir():
        raise ArtifactError(f"--outputs {options.outputs}: there is no such folder")
    return handler(options)


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


class Parser(argparse.ArgumentParser):
    """Arguments of one verb."""

    def error(self, message: str) -> NoReturn:
        """One line and exit code 1, as for every other error."""
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")
