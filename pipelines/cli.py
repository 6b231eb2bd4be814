"""The command line: `effllm <verb> …`.

`run` and `plan` take Hydra overrides (`effllm run paper=sds scale=cpu`); the other verbs look at
the store. Nothing here imports torch, so help and plans appear at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from effllm import __version__
from effllm.modules.errors import ConfigError, EffLLMError

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

REF is [STAGE/]DIGEST-PREFIX. Options that several verbs take: --outputs DIR, --json.
Configuration groups and papers: effllm run --help. Exit codes: 0 done, 1 failed,
130 interrupted (the same command resumes).
"""


def entry() -> None:
    """Console script."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one verb; the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    verb, rest = arguments[0], list(arguments[1:])
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if verb == "run":
            from effllm.pipelines.launch import run_command

            return run_command(rest)
        if verb == "plan":
            from effllm.pipelines.launch import plan_command

            return plan_command(rest)
        if verb == "generate":
            from effllm.pipelines.generate import generate_command

            return generate_command(rest)
        from effllm.pipelines import inspect_store

        handler = inspect_store.VERBS.get(verb)
        if handler is None:
            print(f"effllm: unknown verb {verb!r}; see effllm --help", file=sys.stderr)
            return 1
        parser = Parser(prog=f"effllm {verb}", description=handler.__doc__)
        parser.add_argument(
            "--outputs",
            default="outputs",
            type=os.path.expanduser,
            help="output folder (default: outputs)",
        )
        parser.add_argument("--json", action="store_true", help="print JSON for scripts")
        inspect_store.add_arguments(verb, parser)
        return handler(parser.parse_args(rest))
    except EffLLMError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """Arguments of one verb."""

    def error(self, message: str) -> NoReturn:
        """One line and exit code 1, as for every other error."""
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
