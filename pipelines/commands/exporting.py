"""`effllm export`: a result as a folder of its own, with a model card made from its manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from effllm.modules.errors import ConfigError
from effllm.pipelines.artifacts.arbitration import Arbiters
from effllm.pipelines.artifacts.base import Artifact
from effllm.pipelines.artifacts.checkpoints import HISTORY_FILE, Checkpoint
from effllm.pipelines.artifacts.heads import Heads, HeadScores
from effllm.pipelines.artifacts.kinds import kind_named
from effllm.pipelines.artifacts.measured import Predictions
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.artifacts.statistics import GRAM_FOLDER
from effllm.pipelines.commands.inspect_store import lineage
from effllm.pipelines.engine.store import MANIFEST, Store
from effllm.pipelines.words import counted, short

CARD = "README.md"
_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}"{options})
tokenizer = AutoTokenizer.from_pretrained("{folder}"{options})"""
_READER = """\
from pathlib import Path

from {module} import {reader}

{what} = {reader}(Path("{folder}"), {{}}).{call}()"""
# What can be exported: how its reader is called, and what that gives.
_CALLS: dict[type[Artifact], tuple[str, str]] = {
    Heads: ("ready", "heads"),
    Arbiters: ("policies", "policies"),
    Permutation: ("layer_orders", "orders"),
}


def export_result(store: Store, ref: str, folder: Path) -> int:
    """Copy a result's files, checked against their checksums, and write its card.

    Raises:
        ConfigError: if the folder holds something, or the result is no model or part of one.
        ArtifactError: if there is no such result, or it is damaged.
    """
    _, manifest = store.find(ref)
    label = f"{manifest['stage']}/{manifest['digest'][:12]}"
    kind = kind_named(manifest["kind"], label)
    if not issubclass(kind, (Checkpoint, *_CALLS)):
        raise ConfigError(
            f"{label} holds {manifest['kind']}; models, heads, policies and permutations are "
            f"exported, other results lie in {store.folder(manifest['stage'], manifest['digest'])}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already; choose a new or an empty folder")
    artifact = store.open(manifest["stage"], manifest["digest"], kind)
    # What only further stages read would be larger than the model.
    kept = [name for name in manifest["outputs"] if not name.startswith(f"{GRAM_FOLDER}/")]
    for name in [*kept, MANIFEST]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, target)
    (folder / CARD).write_text(model_card(store, artifact, folder.name), encoding="utf-8")
    print(f"{counted(len(kept), 'file')} in {folder}; how to load them: {CARD} there")
    return 0


def model_card(store: Store, artifact: Artifact, folder: str) -> str:
    """What a result is, how to load it, how it was made and what was measured of it, as Markdown.

    Args:
        store: where its lineage and what was measured of it are looked up.
        artifact: the result.
        folder: what the code that loads it calls its folder.
    """
    manifest = artifact.manifest
    tags = ["effllm", manifest["stage"].replace("_", "-")]
    head = [f"tags: [{', '.join(tags)}]"]
    if isinstance(artifact, Checkpoint):
        head.insert(0, "library_name: transformers")
        source = str(artifact.history[0].get("name", ""))
        if "/" in source:  # a name on the hub
            head.append(f"base_model: {source}")
    code = manifest["code"]
    changed = " with local changes" if code.get("dirty") else ""
    parts = [
        "---\n" + "\n".join(head) + "\n---",
        f"# {folder}",
        f"Made by effllm as `{manifest['instance']}`, result `{artifact.label}` "
        f"({manifest['kind']}), on {str(manifest['timing'].get('finished'))[:10]}. The licence of "
        "the model that it was made from holds for it, too.",
        "## Load it",
        f"```python\n{_loading(artifact, folder)}\n```",
        "## What was measured",
        *_table(["figure", "value", "result"], _measured(store, artifact)),
        "## How it was made",
        f"```bash\n{manifest['command']}\n```",
        f"at commit {code.get('git_sha') or 'unknown'}{changed}, from",
        "```\n" + "\n".join(lineage(store, manifest)) + "\n```",
        "with these settings:",
        f"```json\n{json.dumps(manifest['config'], indent=1)}\n```",
    ]
    if isinstance(artifact, Checkpoint):
        parts.append(f"`{HISTORY_FILE}` holds all that was done to the model, oldest first.")
    return "\n\n".join(parts) + "\n"


def _loading(artifact: Artifact, folder: str) -> str:
    if isinstance(artifact, Checkpoint):
        own_code = "auto_map" in artifact.read_json("config.json")
        options = ", trust_remote_code=True" if own_code else ""
        return _TRANSFORMERS.format(folder=folder, options=options)
    reader = type(artifact)
    call, what = _CALLS[reader]
    return _READER.format(
        module=reader.__module__, reader=reader.__name__, what=what, folder=folder, call=call
    )


def _measured(store: Store, artifact: Artifact) -> Iterator[list[str]]:
    """Figures of the result itself, and of all results that measure it."""
    for _, manifest in store.manifests():
        label = f"{manifest['stage']}/{manifest['digest'][:12]}"
        if label == artifact.label or _is_about(manifest, artifact.label):
            for name, value in manifest["metrics"].items():
                if value is not None:
                    yield [name, short(value), f"`{label}`"]


def _is_about(manifest: Mapping[str, Any], label: str) -> bool:
    """Whether a result only measures another."""
    measures = manifest["kind"] in (Predictions.kind, HeadScores.kind)
    return measures and label in (manifest["inputs"].get("model"), manifest["inputs"].get("heads"))


def _table(titles: list[str], rows: Iterator[list[str]]) -> Iterator[str]:
    lines = [" | ".join(row) for row in rows]
    if not lines:
        yield "Nothing yet."
        return
    yield "\n".join(f"| {line} |" for line in [" | ".join(titles), "---|---:|---", *lines])
