"""Reports side by side: a folder each, named by what a run differs in from its paper."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from effllm.modules.errors import ConfigError
from effllm.pipelines.engine.graph import Instance
from effllm.pipelines.engine.store import Store
from effllm.pipelines.files import make_folder, remove, sync, write_json

RUN_FILE = "run.json"  # beside a report: what it is of
_LONGEST_NAME = 80  # characters of a report's name beside paper and scale


def report_name(sections: dict[str, Any], told: Sequence[str]) -> str:
    """Folder of a run's report: `run.name`, or paper and scale and what differs from them.

    Names are safe in shells and short: what was left out or replaced is told by a digest of it all.

    Raises:
        ConfigError: if `run.name` is no name for a folder.
    """
    name = sections["run"]["name"]
    if name is not None:
        if (
            not re.fullmatch(r"\w[\w.=,@+-]*", str(name), re.ASCII)
            or len(str(name)) > _LONGEST_NAME
        ):
            raise ConfigError(
                f"run.name={name}: expected a name of at most {_LONGEST_NAME} letters, digits and "
                "-_.,=@+, the first of them a letter or digit"
            )
        return str(name)
    base, whole = f"{sections['paper']}-{sections['scale']}", ",".join(told)
    if not whole:
        return base
    safe = re.sub(r"[^\w.=,@+-]+", "_", whole, flags=re.ASCII)
    if safe != whole or len(safe) > _LONGEST_NAME:
        digest = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()
        safe = f"{safe[: _LONGEST_NAME - 9]}-{digest[:8]}"
    return f"{base}-{safe}"


def refuse_other_report(folder: Path, facts: dict[str, Any]) -> str | None:
    """Refuse to put a report in the place of one of another paper, scale or settings.

    Returns:
        The report that is there, if it is of the same settings.

    Raises:
        ConfigError: with the remedy.
    """
    if not (folder / RUN_FILE).is_file():
        return None
    found = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    if any(found[key] != value for key, value in facts.items()):
        raise ConfigError(
            f"{folder} holds the report of another run ({_told(found)}); choose another run.name, "
            "or delete that folder"
        )
    return str(found["report"])


def publish_report(store: Store, instance: Instance, name: str, facts: dict[str, Any]) -> str:
    """Copy a report to `reports/<name>`, note there what the run differs in, and list it there.

    Returns:
        Path of its page, and whose place it took if the same settings had another result before.
    """
    from effllm.pipelines.reports.page import add_note, write_index

    label = f"{instance.stage}/{instance.digest[:12]}"
    made, final = store.open(instance.stage, instance.digest), store.root / "reports" / name
    partial = store.root / "work" / f"report-{name}"
    # Two equal runs may end at once; the folder is garbage when nobody holds the lock of its name.
    with FileLock(store.root / "locks" / f"{partial.name}.lock"):
        before = refuse_other_report(final, facts)
        if partial.exists():
            remove(partial)
        shutil.copytree(made.path, partial)
        more = {
            "report": label,
            "finished": made.manifest["timing"]["finished"],
            "verdicts": made.manifest["metrics"],
        }
        write_json(partial / RUN_FILE, {**facts, **more})
        if facts["differs"]:
            add_note(partial, f"Differs from {_told(facts)}.")
        for path in partial.rglob("*"):
            sync(path)
        make_folder(final.parent)
        if final.exists():
            remove(final)
        shutil.move(partial, final)
    with FileLock(store.root / "locks" / "reports.lock"):
        write_index(final.parent)
    page = str(final / "index.html")
    return page if before in (None, label) else f"{page} (in place of {before})"


def _told(facts: dict[str, Any]) -> str:
    plain = f"paper={facts['paper']} scale={facts['scale']}"
    return ": ".join([plain, ", ".join(facts["differs"])] if facts["differs"] else [plain])
