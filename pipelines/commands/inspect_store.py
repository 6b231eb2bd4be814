"""Verbs that look at the store: ls, show, diff, verify, gc, doctor, report."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effllm.modules.errors import ArtifactError, EffLLMError
from effllm.pipelines.engine import provenance
from effllm.pipelines.engine.identity import DIGEST_LENGTH
from effllm.pipelines.engine.store import RUN_LOCK, Store, is_held, usable_manifest, verify_payload
from effllm.pipelines.files import remove
from effllm.pipelines.words import columns, counted, figures, short


def list_results(store: Store, word: str | None, as_json: bool) -> int:
    """List stored results, newest last; only those with `word` in stage, instance or run.

    Raises:
        ArtifactError: if `word` is in none.
    """
    made, rows, usable = _made_by(store), [], 0
    for _, manifest in store.manifests():
        usable += 1
        ref = f"{manifest['stage']}/{manifest['digest'][:DIGEST_LENGTH]}"
        row = {
            "ref": ref,
            "instance": manifest["instance"],
            "run": made.get(ref),
            "finished": manifest["timing"].get("finished"),
            "bytes": _size(manifest),
            "seconds": manifest["timing"]["seconds"],
            "metrics": manifest["metrics"],
        }
        rows.append(row)
    if word is not None:
        rows = _with_word(rows, word)
    rows.sort(key=lambda row: str(row["finished"]))
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    lines = [["result", "made (UTC)", "size", "time", "run", "as", "figures"]]
    for row in rows:
        time, run = str(row["finished"] or "")[:16].replace("T", " "), row["run"] or ""
        size, seconds = f"{row['bytes'] / 1e6:.1f} MB", f"{row['seconds']:.1f} s"
        about = figures(row["metrics"], 2)
        lines.append([row["ref"], time, size, seconds, run, row["instance"], about])
    print(*columns(lines, right="  rr"), sep="\n")
    print(f"{counted(len(rows), 'result')}, {sum(row['bytes'] for row in rows) / 1e9:.2f} GB")
    broken = len(store.folders()) - usable
    if broken:
        print(f"{counted(broken, 'folder')} without a result: effllm verify")
    return 0


def _made_by(store: Store) -> dict[str, str]:
    """Result -> the run that made it, `<paper>/<time>`; runs whose folders are gone are unknown."""
    runs, made = store.root / "runs", {}
    for file in sorted(runs.glob("**/run.json")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            for stage in json.loads(file.read_text(encoding="utf-8"))["stages"].values():
                if stage["status"] in ("ran", "resumed"):
                    ref = f"{stage['stage']}/{stage['digest'][:DIGEST_LENGTH]}"
                    made[ref] = str(file.parent.relative_to(runs))
    return made


def _with_word(rows: list[dict[str, Any]], word: str) -> list[dict[str, Any]]:
    fields = ("ref", "instance", "run")
    found = [row for row in rows if any(word in str(row[field] or "") for field in fields)]
    if rows and not found:
        from effllm.pipelines.engine.building import suggestion

        stages = list(dict.fromkeys(row["ref"].partition("/")[0] for row in rows))
        raise ArtifactError(f"no result has {word!r} in its name{suggestion(word, stages)}")
    return found


def show_result(store: Store, ref: str, as_json: bool) -> int:
    """Show one result: what made it and from what, configuration, metrics and files."""
    folder, manifest = store.find(ref)
    if as_json:
        print(json.dumps(manifest, indent=1))
        return 0
    label = f"{manifest['stage']}/{manifest['digest'][:DIGEST_LENGTH]}"
    run = _made_by(store).get(label, "a run whose folder is gone")
    print(f"{label}  made as {manifest['instance']} by {run}")
    print(f"folder   {folder}")
    print(f"class    {manifest['target']} version {manifest['version']}")
    print(f"command  {manifest['command']}")
    print("from", *lineage(store, manifest), sep="\n")
    for title in ("config", "sources", "metrics", "timing", "code", "env"):
        print(title)
        for key, value in _flat(manifest[title]).items():
            print(f"  {key:<34} {short(value)}")
    for warning in manifest["warnings"]:
        print(f"warning  {warning}")
    print("files")
    for name, entry in manifest["outputs"].items():
        print(f"  {name:<34} {entry['bytes']:>12} bytes  sha256 {entry['sha256'][:12]}")
    return 0


def lineage(store: Store, manifest: Mapping[str, Any]) -> list[str]:
    """What a result was made from, as a tree of lines; what appears twice is followed once."""
    lines: list[str] = []
    seen: set[str] = set()

    def follow(manifest: Mapping[str, Any], indent: str) -> None:
        for slot, labels in manifest["inputs"].items():
            for label in [labels] if isinstance(labels, str) else labels:
                parent = store.manifest(*label.split("/"))
                name = parent["instance"] if parent else "removed since"
                again = " (see above)" if label in seen else ""
                lines.append(f"{indent}{slot}: {label}  {name}{again}")
                if parent and not again:
                    seen.add(label)
                    follow(parent, f"{indent}  ")

    follow(manifest, "  ")
    return lines or ["  nothing: it comes from outside"]


def diff_results(store: Store, ref: str, other: str, as_json: bool) -> int:
    """Show what differs between two results."""
    titles = ("stage", "target", "version", "config", "inputs", "sources", "metrics", "code", "env")
    left, right = (
        _flat({title: store.find(one)[1][title] for title in titles}) for one in (ref, other)
    )
    changed = {
        key: [left.get(key), right.get(key)]
        for key in dict.fromkeys([*left, *right])
        if left.get(key) != right.get(key)
    }
    if as_json:
        print(json.dumps(changed, indent=1))
    else:
        for key, (old, new) in changed.items():
            print(f"{key:<44} {short(old)} -> {short(new)}")
        print(counted(len(changed), "difference"))
    return 0


def verify_results(store: Store, refs: Sequence[str], as_json: bool) -> int:
    """Check stored files against their checksums; exit code 1 and the file's name if one fails."""
    chosen = [store.find(ref)[0] for ref in refs] if refs else store.folders()
    failures = {}
    for folder in chosen:
        manifest, why = usable_manifest(folder, folder.parent.name, folder.name)
        problems = [why] if manifest is None else verify_payload(folder, manifest)
        if problems:
            failures[f"{folder.parent.name}/{folder.name}"] = problems
    if as_json:
        print(json.dumps({"checked": len(chosen), "damaged": failures}, indent=1))
    else:
        for label, problems in failures.items():
            print(f"{label}: {'; '.join(problems)}")
        print(f"{counted(len(chosen), 'result')} checked, {len(failures)} damaged")
    return 1 if failures else 0


def collect_garbage(store: Store, yes: bool, as_json: bool) -> int:
    """List, or with `yes` remove, results that no run refers to and abandoned work folders."""
    sizes = {}
    # A run says under the same lock what it needs: it takes up nothing that is being removed.
    with store.registering() if yes else contextlib.nullcontext():
        for path in _garbage(store):
            sizes[path] = _size_on_disk(path)
            if yes and path.parent.name != "trash":  # a kill leaves nothing half removed
                store.to_trash(path)
    if yes:
        for path in store.root.glob("trash/*"):
            with contextlib.suppress(FileNotFoundError):  # its owner removes it as well
                remove(path)
    if as_json:
        rows = {str(folder.relative_to(store.root)): size for folder, size in sizes.items()}
        print(json.dumps({"removed": yes, "bytes": rows}, indent=1))
        return 0
    for folder, size in sizes.items():
        print(f"{size / 1e6:10.1f} MB  {folder.relative_to(store.root)}")
    action = "removed" if yes else "would be removed by --yes"
    print(f"{counted(len(sizes), 'folder')}, {sum(sizes.values()) / 1e9:.2f} GB {action}")
    return 0


def _garbage(store: Store) -> list[Path]:
    """Results that no run refers to, work of no living run, and the trash."""
    kept, living = set(), set()
    for file in store.root.glob("runs/**/run.json"):
        try:
            stages = json.loads(file.read_text(encoding="utf-8"))["stages"].values()
            needed = {(stage["stage"], stage["digest"][:DIGEST_LENGTH]) for stage in stages}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{file} cannot be read, so it is not known which results its run needs: give the "
                "command of the run again if they are wanted, then delete that folder"
            ) from error
        kept |= needed
        if is_held(file.parent / RUN_LOCK):
            living |= needed
    doomed = [one for one in store.folders() if (one.parent.name, one.name) not in kept]
    doomed += [
        folder
        for folder in sorted(store.root.glob("work/*"))
        if tuple(folder.name.rsplit("-", 1)) not in living
        and not is_held(store.root / "locks" / f"{folder.name}.lock")
    ]
    return [*doomed, *sorted(store.root.glob("trash/*"))]


def check_machine(outputs: Path, as_json: bool) -> int:
    """Check this machine: Python, packages, embedded model and text, disk, device."""
    import torch

    checks: list[tuple[str, bool, str]] = []

    def check(name: str, passed: bool, detail: str) -> None:
        checks.append((name, passed, detail))

    check("python", sys.version_info >= (3, 11), platform.python_version())
    for package in ("torch", "transformers", "lightning", "datasets", "lm-eval", "wandb"):
        version = provenance.package_version(package)
        check(package, version is not None, version or f"run pip install {package}")
    for label, overrides in (("model smollm2_135m", "model"), ("data enwiki", "data")):
        try:
            _embedded(overrides).check()
            check(label, True, "installed")
        except EffLLMError as error:
            check(label, False, str(error))
    existing = next(folder for folder in [outputs, *outputs.resolve().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    check("disk", free > 15e9, f"{free / 1e9:.0f} GB free; a cpu-scale paper run takes about 12 GB")
    check("outputs", os.access(existing, os.W_OK), f"{outputs} can be written to")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    check("device", True, f"{device}, {torch.get_num_threads()} threads")
    kernels = "installed" if importlib.util.find_spec("triton") else "not installed (GPU only)"
    check("triton", True, kernels)
    if as_json:
        print(json.dumps([{"check": n, "ok": ok, "detail": d} for n, ok, d in checks], indent=1))
    else:
        for name, passed, detail in checks:
            print(f"{'ok  ' if passed else 'FAIL'}  {name:<20} {detail}")
    return 0 if all(passed for _, passed, _ in checks) else 1


def print_report(outputs: Path, chosen: str | None, as_json: bool) -> int:
    """List the reports, or print one as Markdown (as JSON: its result rows)."""
    folder = outputs / "reports"
    names = sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())
    if chosen is None:
        if as_json:
            print(json.dumps(names))
        else:
            for name in names:
                run = folder / name / "run.json"
                facts = json.loads(run.read_text(encoding="utf-8")) if run.is_file() else {}
                print(folder / name / "index.html", *facts.get("differs", []))
        return 0
    if chosen not in names:
        from effllm.pipelines.engine.building import suggestion

        raise ArtifactError(f"no report {chosen!r}{suggestion(chosen, names)}")
    file = "results.json" if as_json else "report.md"
    print((folder / chosen / file).read_text(encoding="utf-8"), end="")
    return 0


def _embedded(group: str) -> Any:
    from omegaconf import OmegaConf

    from effllm.pipelines.commands.composing import compose
    from effllm.pipelines.engine.building import build

    chosen = compose(["paper=sds", "scale=cpu"])[group]
    return build(group, Any, OmegaConf.to_container(chosen, resolve=True))  # type: ignore[arg-type]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            k: v for key, one in value.items() for k, v in _flat(one, f"{prefix}{key}.").items()
        }
    return {prefix.rstrip("."): value}


def _size(manifest: Mapping[str, Any]) -> int:
    return sum(entry["bytes"] for entry in manifest["outputs"].values())


def _size_on_disk(path: Path) -> int:
    size = 0
    for file in [path, *path.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):  # somebody else removes it at this moment
            size += file.lstat().st_size if not file.is_dir() else 0
    return size
