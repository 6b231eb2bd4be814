"""Verbs that look at the store: ls, show, diff, verify, gc, doctor, report."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from effllm.modules.errors import ArtifactError, EffLLMError
from effllm.pipelines.engine import provenance
from effllm.pipelines.engine.identity import DIGEST_LENGTH
from effllm.pipelines.engine.store import RUN_LOCK, Store, is_held, usable_manifest, verify_payload
from effllm.pipelines.files import remove


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of one verb besides the common ones."""
    if verb == "ls":
        parser.add_argument("stage", nargs="?", help="only results of this stage")
    elif verb == "show":
        parser.add_argument("ref", help="[STAGE/]DIGEST-PREFIX")
    elif verb == "diff":
        parser.add_argument("ref", nargs=2, help="[STAGE/]DIGEST-PREFIX")
    elif verb == "verify":
        parser.add_argument("ref", nargs="*", help="[STAGE/]DIGEST-PREFIX; everything if none")
    elif verb == "gc":
        parser.add_argument("--yes", action="store_true", help="remove instead of listing")
    elif verb == "report":
        parser.add_argument("name", nargs="?", help="such as sds-cpu")


def list_results(options: argparse.Namespace) -> int:
    """List stored results: stage/digest, the instance that made it, size, seconds, metrics."""
    store, rows, usable = Store(Path(options.outputs)), [], 0
    for _, manifest in store.manifests():
        usable += 1
        if options.stage in (None, manifest["stage"]):
            rows.append(
                {
                    "ref": f"{manifest['stage']}/{manifest['digest'][:12]}",
                    "instance": manifest["instance"],
                    "bytes": _size(manifest),
                    "seconds": manifest["timing"]["seconds"],
                    "metrics": manifest["metrics"],
                }
            )
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        metrics = ", ".join(f"{k} {_short(v)}" for k, v in list(row["metrics"].items())[:2])
        size, seconds = row["bytes"] / 1e6, row["seconds"]
        print(f"{row['ref']:<38} {row['instance']:<40} {size:8.1f} MB {seconds:8.1f} s  {metrics}")
    print(f"{len(rows)} results, {sum(row['bytes'] for row in rows) / 1e9:.2f} GB")
    if len(store.folders()) > usable:
        print(f"{len(store.folders()) - usable} folders that are no results: effllm verify")
    return 0


def show_result(options: argparse.Namespace) -> int:
    """Show one result: configuration, inputs, metrics and files."""
    folder, manifest = Store(Path(options.outputs)).find(options.ref)
    if options.json:
        print(json.dumps(manifest, indent=1))
        return 0
    print(f"{manifest['stage']}/{manifest['digest'][:12]}  made as {manifest['instance']}")
    print(f"folder   {folder}")
    print(f"class    {manifest['target']} version {manifest['version']}")
    for title in ("config", "inputs", "sources", "metrics", "timing", "code", "env"):
        print(title)
        for key, value in _flat(manifest[title]).items():
            print(f"  {key:<34} {_short(value)}")
    for warning in manifest["warnings"]:
        print(f"warning  {warning}")
    print("files")
    for name, entry in manifest["outputs"].items():
        print(f"  {name:<34} {entry['bytes']:>12} bytes  sha256 {entry['sha256'][:12]}")
    return 0


def diff_results(options: argparse.Namespace) -> int:
    """Show what differs between two results."""
    store = Store(Path(options.outputs))
    titles = ("stage", "target", "version", "config", "inputs", "sources", "metrics", "code", "env")
    left, right = (
        _flat({title: store.find(ref)[1][title] for title in titles}) for ref in options.ref
    )
    changed = {
        key: [left.get(key), right.get(key)]
        for key in dict.fromkeys([*left, *right])
        if left.get(key) != right.get(key)
    }
    if options.json:
        print(json.dumps(changed, indent=1))
    else:
        for key, (old, new) in changed.items():
            print(f"{key:<44} {_short(old)} -> {_short(new)}")
        print(f"{len(changed)} differences")
    return 0


def verify_results(options: argparse.Namespace) -> int:
    """Check stored files against their checksums; exit code 1 and the file's name if one fails."""
    store = Store(Path(options.outputs))
    chosen = [store.find(ref)[0] for ref in options.ref] if options.ref else store.folders()
    failures = {}
    for folder in chosen:
        manifest, why = usable_manifest(folder, folder.parent.name, folder.name)
        problems = [why] if manifest is None else verify_payload(folder, manifest)
        if problems:
            failures[f"{folder.parent.name}/{folder.name}"] = problems
    if options.json:
        print(json.dumps({"checked": len(chosen), "damaged": failures}, indent=1))
    else:
        for label, problems in failures.items():
            print(f"{label}: {'; '.join(problems)}")
        print(f"{len(chosen)} results checked, {len(failures)} damaged")
    return 1 if failures else 0


def collect_garbage(options: argparse.Namespace) -> int:
    """List, or with --yes remove, results that no run refers to and abandoned work folders.

    A run that is no longer wanted is forgotten by deleting its folder below outputs/runs.
    """
    store = Store(Path(options.outputs))
    sizes = {}
    # A run says under the same lock what it needs: it takes up nothing that is being removed.
    with store.registering() if options.yes else contextlib.nullcontext():
        for path in _garbage(store):
            sizes[path] = _size_on_disk(path)
            if options.yes and path.parent.name != "trash":  # a kill leaves nothing half removed
                store.to_trash(path)
    if options.yes:
        for path in store.root.glob("trash/*"):
            with contextlib.suppress(FileNotFoundError):  # its owner removes it as well
                remove(path)
    if options.json:
        rows = {str(folder.relative_to(store.root)): size for folder, size in sizes.items()}
        print(json.dumps({"removed": options.yes, "bytes": rows}, indent=1))
        return 0
    for folder, size in sizes.items():
        print(f"{size / 1e6:10.1f} MB  {folder.relative_to(store.root)}")
    action = "removed" if options.yes else "would be removed by --yes"
    print(f"{len(sizes)} folders, {sum(sizes.values()) / 1e9:.2f} GB {action}")
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


def check_machine(options: argparse.Namespace) -> int:
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
    outputs = Path(options.outputs)
    existing = next(folder for folder in [outputs, *outputs.resolve().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    check("disk", free > 15e9, f"{free / 1e9:.0f} GB free; a cpu-scale paper run takes about 12 GB")
    check("outputs", os.access(existing, os.W_OK), f"{outputs} can be written to")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    check("device", True, f"{device}, {torch.get_num_threads()} threads")
    kernels = "installed" if importlib.util.find_spec("triton") else "not installed (GPU only)"
    check("triton", True, kernels)
    if options.json:
        print(json.dumps([{"check": n, "ok": ok, "detail": d} for n, ok, d in checks], indent=1))
    else:
        for name, passed, detail in checks:
            print(f"{'ok  ' if passed else 'FAIL'}  {name:<20} {detail}")
    return 0 if all(passed for _, passed, _ in checks) else 1


def print_report(options: argparse.Namespace) -> int:
    """List the reports, or print one as Markdown (with --json: its result rows)."""
    folder = Path(options.outputs) / "reports"
    names = sorted(path.name for path in folder.glob("[!.]*") if path.is_dir())
    if options.name is None:
        if options.json:
            print(json.dumps(names))
        else:
            for name in names:
                run = folder / name / "run.json"
                facts = json.loads(run.read_text(encoding="utf-8")) if run.is_file() else {}
                print(folder / name / "index.html", *facts.get("differs", []))
        return 0
    if options.name not in names:
        raise ArtifactError(f"no report {options.name!r}; there are {', '.join(names) or 'none'}")
    file = "results.json" if options.json else "report.md"
    print((folder / options.name / file).read_text(encoding="utf-8"), end="")
    return 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "ls": list_results,
    "show": show_result,
    "diff": diff_results,
    "verify": verify_results,
    "gc": collect_garbage,
    "doctor": check_machine,
    "report": print_report,
}


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


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _size(manifest: Mapping[str, Any]) -> int:
    return sum(entry["bytes"] for entry in manifest["outputs"].values())


def _size_on_disk(path: Path) -> int:
    size = 0
    for file in [path, *path.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):  # somebody else removes it at this moment
            size += file.lstat().st_size if not file.is_dir() else 0
    return size
