"""The verbs: for each the page of `effllm <verb> --help`, its arguments, and what it calls.

What is heavy is imported where it is used, so that help and completion appear at once.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Exit, Option, Typer
from typer.core import TyperGroup

from effllm import __version__
from effllm.modules.errors import ArtifactError, ConfigError
from effllm.pipelines.commands import catalogue, completing, inspect_store
from effllm.pipelines.engine.store import Store

_OUTPUTS = Path("outputs")

Words = Annotated[
    list[str] | None,
    Argument(
        metavar="KEY=VALUE…",
        help="Settings in Hydra's grammar: a group's file (scale=smoke) or a value (seed=1).",
        autocompletion=completing.settings,
    ),
]
Reference = Annotated[
    str,
    Argument(
        metavar="REF",
        help="A result: [STAGE/]DIGEST, of which a few digits will do.",
        autocompletion=completing.references,
    ),
]
Outputs = Annotated[Path, Option(help="Folder of results.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON for scripts.")]


class _Verbs(TyperGroup):
    """The program; a verb that is none is refused as everything else is."""

    def resolve_command(self, ctx, args):  # type: ignore[no-untyped-def] # types are Typer's own
        """The verb, its command and its arguments.

        Raises:
            ConfigError: for an unknown verb.
        """
        if args[0] not in self.commands and not ctx.resilient_parsing:
            from difflib import get_close_matches

            close = get_close_matches(args[0], self.commands, n=1)
            meant = f", did you mean {close[0]}?" if close else ";"
            raise ConfigError(f"unknown verb {args[0]!r}{meant} see effllm --help")
        return super().resolve_command(ctx, args)


def _block(title: str, *lines: str) -> str:
    """Lines of a help page that are not wrapped."""
    return "\n".join(["\b", f"{title}:", *(f"  {line}" for line in lines)])


_examples = partial(_block, "Examples")
_GENERATE = _block(
    "Settings (all are in conf/generate.yaml)",
    "decoder=NAME         how to decode; effllm options decoder lists them",
    "draft=NAME           a draft model, for decoders that need one",
    "model=NAME           another model; effllm options model lists them",
    "model=hf model.name=owner/name    one of the hub, or a folder",
    "model=artifact:prune/3f           one of your results",
    "dtype=float32        or bfloat16, float16, float64, auto",
    'max_new_tokens=256   seed=0   chat=false   system="Be brief."',
)


app = Typer(
    cls=_Verbs,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each verb has a page with examples: effllm run --help. With --traceback an error shows "
    "where it arose. Exit codes: 0 done, 1 failed, 130 interrupted (the same command resumes).",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise Exit


@app.callback()
def program(
    version: Annotated[
        bool, Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Reproducible research on efficient language models.

    Pruning, cache compression and speculative decoding: every paper is one command, every result
    is kept, can be resumed and can be checked.
    """


@app.command(epilog=_examples("effllm papers"))
def papers(as_json: AsJson = False) -> int:
    """List papers and studies: what they ask, what they take."""
    return catalogue.print_papers(as_json)


@app.command(epilog=_examples("effllm options", "effllm options pruner"))
def options(
    group: Annotated[
        str | None,
        Argument(help="Such as pruner.", autocompletion=catalogue.swappable),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """List the parts that can be swapped, or the files of one group."""
    return catalogue.print_options(group, as_json)


@app.command(
    epilog=_examples(
        "effllm plan paper=sds",
        "effllm plan paper=sds scale=smoke execute.until=wanda_2of4.prune",
    )
)
def plan(words: Words = None, as_json: AsJson = False) -> int:
    """Show what a run would do, without doing it."""
    from effllm.pipelines.commands.launch import plan_command

    return plan_command(words or [], as_json)


@app.command(
    epilog=_examples(
        "effllm run paper=sds scale=smoke",
        "effllm run paper=sds model=hf model.name=Qwen/Qwen3-0.6B",
        "effllm run paper=sds pruner@pipeline.wanda_half.prune.pruner=ria",
        "effllm run -m paper=sds seed=0,1,2",
        "effllm run paper=sds execute.until=wanda_2of4.prune",
        "effllm run paper=sds --cfg job",
    )
)
def run(
    words: Words = None,
    multirun: Annotated[
        bool, Option("--multirun", "-m", help="Run once for each of several values: seed=0,1,2.")
    ] = False,
    cfg: Annotated[
        Literal["job", "hydra", "all"] | None,
        Option(help="Print the composed configuration and stop."),
    ] = None,
) -> int:
    """Run a paper; what is there already is reused.

    Settings are listed by --cfg job, what can be swapped by effllm options.
    """
    from effllm.pipelines.commands.launch import run_command

    told = [*(words or []), *(["--multirun"] if multirun else []), *(["--cfg", cfg] if cfg else [])]
    return run_command(told)


@app.command(epilog=_examples("effllm demo", "effllm demo model=hf model.name=my-model"))
def demo(words: Words = None) -> int:
    """Take a first look at three methods: one page, 90 seconds."""
    from effllm.pipelines.commands.launch import run_command

    return run_command(["paper=demo", *(words or [])])


@app.command(
    # Words that begin with "-" may be the prompt; `read_arguments` refuses those that are not.
    context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},
    epilog=_GENERATE
    + "\n\n"
    + _examples(
        'effllm generate "Repeat this text: The lighthouse stood on a ridge of rock."',
        'effllm generate "What is 2+2=?" decoder=plain',
        'effllm generate "What is 2+2=?" model=artifact:prune/3f',
        "effllm generate --file question.txt max_new_tokens=64",
        'git diff | effllm generate system="Say in one line what changed."',
    ),
)
def generate(
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="PROMPT KEY=VALUE…",
            help='The prompt, or "-" to read it from a pipe; and settings, see below.',
            autocompletion=completing.settings,
        ),
    ] = None,
    file: Annotated[Path | None, Option(help="Read the prompt from this file.")] = None,
) -> int:
    """Continue a text, and say how fast it went.

    Prompt and system message are taken as they are. prompt=… gives a prompt that looks like a
    setting or begins with "-".
    """
    from effllm.pipelines.commands.generate import generate_command

    return generate_command(words or [], file)


@app.command(epilog=_examples("effllm report", "effllm report sds-cpu"))
def report(
    name: Annotated[
        str | None, Argument(help="Such as sds-cpu.", autocompletion=completing.reports)
    ] = None,
    outputs: Outputs = _OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """List the reports, or print one; with --json its result rows."""
    return inspect_store.print_report(_store(outputs).root, name, as_json)


@app.command(
    epilog=_examples(
        "effllm leaderboard",
        "effllm leaderboard --model smollm --text enwiki",
        "effllm leaderboard --json",
    )
)
def leaderboard(
    model: Annotated[str | None, Option(help="Only models with this in their name.")] = None,
    text: Annotated[str | None, Option(help="Only results on texts with this name.")] = None,
    scale: Annotated[str | None, Option(help="Only this scale; else all but smoke.")] = None,
    outputs: Outputs = _OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """Compare all methods of all reports on one page.

    Perplexities are compared on the same windows only, speeds inside one report.
    """
    from effllm.pipelines.commands.boards import make_leaderboard

    return make_leaderboard(_store(outputs).root, model, text, scale, as_json)


@app.command(epilog=_examples("effllm ls", "effllm ls prune", "effllm ls wanda_2of4"))
def ls(
    word: Annotated[
        str | None, Argument(help="Only results with this in stage, digest, instance or run.")
    ] = None,
    outputs: Outputs = _OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """List stored results: when and by which run, size, figures."""
    return inspect_store.list_results(_store(outputs), word, as_json)


@app.command(epilog=_examples("effllm show prune/3f"))
def show(ref: Reference, outputs: Outputs = _OUTPUTS, as_json: AsJson = False) -> int:
    """Show one result: what made it and from what, settings, figures."""
    return inspect_store.show_result(_store(outputs), ref, as_json)


@app.command(epilog=_examples("effllm diff prune/3f prune/a1"))
def diff(
    ref: Reference, other: Reference, outputs: Outputs = _OUTPUTS, as_json: AsJson = False
) -> int:
    """Show what differs between two results."""
    return inspect_store.diff_results(_store(outputs), ref, other, as_json)


@app.command(epilog=_examples("effllm export prune/3f my-model"))
def export(
    ref: Reference,
    folder: Annotated[Path, Argument(help="A new or an empty folder.")],
    outputs: Outputs = _OUTPUTS,
) -> int:
    """Copy a model, or a part of one, to a folder of its own.

    Files are checked against their checksums. README.md there says how to load them, how they were
    made and what was measured.
    """
    from effllm.pipelines.commands.exporting import export_result

    return export_result(_store(outputs), ref, folder.expanduser())


@app.command(epilog=_examples("effllm verify", "effllm verify prune/3f"))
def verify(
    refs: Annotated[
        list[str] | None,
        Argument(
            metavar="REF…",
            help="Results; all if none is named.",
            autocompletion=completing.references,
        ),
    ] = None,
    outputs: Outputs = _OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """Check stored files against their checksums.

    Ends with exit code 1 and the names of the files if any is damaged.
    """
    return inspect_store.verify_results(_store(outputs), refs or [], as_json)


@app.command(epilog=_examples("effllm gc", "effllm gc --yes"))
def gc(
    yes: Annotated[bool, Option("--yes", help="Remove them, do not only list them.")] = False,
    outputs: Outputs = _OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """List or remove results that no run refers to.

    Abandoned work goes, too. A run that is no longer wanted is forgotten by deleting its folder
    below outputs/runs.
    """
    return inspect_store.collect_garbage(_store(outputs), yes, as_json)


@app.command(epilog=_examples("effllm doctor"))
def doctor(outputs: Outputs = _OUTPUTS, as_json: AsJson = False) -> int:
    """Check this machine and what is installed."""
    return inspect_store.check_machine(_store(outputs).root, as_json)


def _store(outputs: Path) -> Store:
    """The store in a folder; a folder that was named must be there.

    Raises:
        ArtifactError: if it is not.
    """
    folder = outputs.expanduser()
    if outputs != _OUTPUTS and not folder.is_dir():
        raise ArtifactError(f"--outputs {outputs}: there is no such folder")
    return Store(folder)
