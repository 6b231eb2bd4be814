"""What the shell offers at a TAB: settings, references of results, names of reports."""

from __future__ import annotations

from pathlib import Path

from typer import Context

from effllm.pipelines.commands.catalogue import chosen_by_name, names


def settings(ctx: Context, incomplete: str) -> list[str]:
    """`group=name` for all groups of the verb, or the names of the group that was typed.

    Bash splits words at "=" and asks for the name alone; zsh asks for the whole word.
    """
    before = list(ctx.params.get("words") or [])
    if before[-1:] == ["="]:
        return _names(before[-2])
    if before and not incomplete and "=" not in before[-1] and _names(before[-1]):
        return _names(before[-1])
    key, is_whole, _ = incomplete.partition("=")
    file = "generate" if ctx.command.name == "generate" else "config"
    keys = [key] if is_whole else chosen_by_name(file)
    return [f"{one}={name}" for one in keys for name in _names(one)]


def references(ctx: Context) -> list[str]:
    """Stage and digest of every result."""
    folders = _outputs(ctx).glob("artifacts/*/*")
    return sorted(f"{folder.parent.name}/{folder.name}" for folder in folders)


def reports(ctx: Context) -> list[str]:
    """Names of the reports."""
    return sorted(page.parent.name for page in _outputs(ctx).glob("reports/*/index.html"))


def _names(key: str) -> list[str]:
    """Files of the group that a key such as `pruner@pipeline.prune.pruner` is of."""
    return names(key.partition("@")[0].lstrip("+~"))


def _outputs(ctx: Context) -> Path:
    return Path(ctx.params.get("outputs") or "outputs").expanduser()
