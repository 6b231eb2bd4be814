"""What can be run and what can be swapped, told from the files of `conf` alone."""

from __future__ import annotations

import itertools
import json
import re
import textwrap
from pathlib import Path

from effllm.modules.errors import ConfigError

CONF_DIR = str(Path(__file__).resolve().parents[2] / "conf")
# Groups that papers are written with, not swapped by hand; `effllm papers` lists one of them.
_NOT_SWAPPED = ("budget", "paper", "paper_scale", "paths", "recipe", "stage")


def names(group: str) -> list[str]:
    """What can be chosen in a group: names of its files."""
    return sorted(file.stem for file in Path(CONF_DIR, group).glob("*.yaml"))


def swappable() -> list[str]:
    """Groups whose files users choose from."""
    folders = sorted(path.name for path in Path(CONF_DIR).iterdir() if path.is_dir())
    return [name for name in folders if name not in _NOT_SWAPPED and names(name)]


def chosen_by_name(file: str = "config") -> list[str]:
    """Groups of a top-level file that are chosen as `group=name`, in its order."""
    import yaml

    defaults = yaml.safe_load(Path(CONF_DIR, f"{file}.yaml").read_text(encoding="utf-8"))[
        "defaults"
    ]
    keys = [key for entry in defaults if isinstance(entry, dict) for key in entry]
    return [key for key in keys if " " not in key]  # without optional files and Hydra's own


def header(group: str, name: str) -> str:
    """The comment at the top of a file, on one line."""
    lines = Path(CONF_DIR, group, f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.lstrip("# ") for line in comment if not line.startswith("# @"))


def print_papers(as_json: bool) -> int:
    """Print papers and studies: a sentence each, and what a run takes if that is known."""
    rows = []
    for name in names("paper"):
        about, _, cost = header("paper", name).partition(" At cpu scale: ")
        rows.append({"paper": name, "about": _first_sentence(about), "cpu_scale": cost or None})
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        cost = f" At cpu scale: {row['cpu_scale']}" if row["cpu_scale"] else ""
        _print_entry(str(row["paper"]), f"{row['about']}{cost}")
    print("\nRun one: effllm run paper=sds. Its figures: docs/papers, or effllm report.")
    return 0


def print_options(group: str | None, as_json: bool) -> int:
    """Print what can be swapped: all groups with their names, or one with a sentence for each.

    Raises:
        ConfigError: for a group that is none, with the one that may have been meant.
    """
    groups = swappable()
    if group is None:
        found = {one: ", ".join(names(one)) for one in groups}
    elif group in groups:
        found = {name: _first_sentence(header(group, name)) for name in names(group)}
    else:
        from effllm.pipelines.engine.building import suggestion

        raise ConfigError(f"no group {group!r}{suggestion(group, groups)}")
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    for name, about in found.items():
        _print_entry(name, about)
    if group is None:
        print("\nMore about the files of a group: effllm options pruner")
    else:
        at_top = group in {*chosen_by_name(), *chosen_by_name("generate")}
        place = "" if at_top else "@pipeline.INSTANCE.FIELD"
        print(f"\nChoose one: {group}{place}={next(iter(found))}")
    return 0


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.?]) ", text, maxsplit=1)[0]


def _print_entry(name: str, about: str) -> None:
    lines = textwrap.wrap(about, 76) or [""]
    print(f"{name:<22}{lines[0]}", *(f"{'':22}{line}" for line in lines[1:]), sep="\n")
