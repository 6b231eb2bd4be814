"""What `effllm generate` decodes with: the model, and drafts or heads, out of the store."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.modules.errors import ConfigError
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.decoding import load_draft
from effllm.pipelines.artifacts.heads import Heads, describe_target
from effllm.pipelines.commands.asked import FirstLayers, Settings, StoredDraft
from effllm.pipelines.commands.launch import choose_device
from effllm.pipelines.engine.building import build
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.store import Store
from effllm.pipelines.stages.decoding.loading import DecodingArm

if TYPE_CHECKING:
    from effllm.modules.decoding.session import Session
    from effllm.modules.heads.loaded import LoadedHeads


def open_session(settings: Settings, text: str, system: str | None) -> tuple[Session, list[int]]:
    """A session of the decoder that was asked for, and the prompt's token ids.

    Args:
        settings: everything but the prompt.
        text: the prompt.
        system: system message of the chat.

    Raises:
        EffLLMError: for parts that do not fit; before a model is read where none is needed.
    """
    from effllm.modules.decoding import drafts, joining
    from effllm.modules.decoding.proposers.base import StateReader
    from effllm.modules.inference.fast_path import speed_up

    decoder = build("decoder", DecodingArm, settings.decoder.model_dump())
    proposer, wanted = decoder["proposer"], settings.draft
    by_heads = isinstance(proposer, partial) and issubclass(proposer.func, StateReader)  # type: ignore[arg-type]
    joining.require_draft(proposer, given=by_heads or wanted.kind != "none")
    if by_heads and wanted.kind == "first_layers":
        raise ConfigError(
            "draft=first_layers: this decoder drafts by trained heads; leave out draft=…, or name "
            "them: draft=checkpoint draft.ref=train_heads/<digest>"
        )
    device = choose_device(settings.trainer.model_dump())
    store = Store(Path(settings.paths.outputs))
    named = store.find(wanted.ref)[1] if isinstance(wanted, StoredDraft) else None
    stored = None if named is None or by_heads else _checkpoint(store, named)
    checkpoint = imported(settings.model, store)
    tokenizer = checkpoint.load_tokenizer()
    prompt = joining.encode_prompt(tokenizer, text, chat=settings.chat, system=system)
    checkpoint.require_context(len(prompt), "the prompt")
    draft: drafts.Draft | None = _heads(named, checkpoint, store) if by_heads else None

    model = checkpoint.load_model(settings.dtype, device, settings.device_map)
    path = speed_up(model)
    if path.reason:
        print(f"[{path.kind} passes, not compiled: {path.reason}]", file=sys.stderr)
    if stored is not None:
        smaller = load_draft(stored, settings.dtype, device)
        speed_up(smaller)
        draft = drafts.Given(smaller)
    elif isinstance(wanted, FirstLayers):
        draft = drafts.FirstLayers(wanted.layers)
    joined = joining.Decoder(proposer, decoder["verifier"], draft)
    return joined.join(model, tokenizer, stop_strings=tuple(settings.stop)), prompt


def _heads(named: dict[str, Any] | None, checkpoint: Checkpoint, store: Store) -> LoadedHeads:
    """The heads that were named, or Amphista's that were trained last on this model.

    Raises:
        ConfigError: if the store has none.
        ArtifactError: if they belong to another model.
    """
    target = describe_target(checkpoint)
    if named is not None:
        heads = store.open(named["stage"], named["digest"], Heads)
        if not isinstance(heads, Heads) or not (heads.path / "heads.json").is_file():
            raise ConfigError(f"{heads.label} holds no heads")
        heads.require_target(target)
        return heads.ready()
    for manifest in last_results(store, "train_heads"):
        heads = store.open(manifest["stage"], manifest["digest"], Heads)
        assert isinstance(heads, Heads)
        about = heads.about
        whole = about["settings"].get("ae_layers") and about["settings"].get("sa_layers")
        if whole and about["target"]["weights"] == target["weights"]:
            return heads.ready()
    raise ConfigError(
        f"{store.root} has no Amphista heads of this model; train some: effllm run paper=amphista "
        "execute.until=amphista_0.heads"
    )


def last_results(store: Store, stage: str) -> list[dict[str, Any]]:
    """Manifests of all results of a stage, the last one first."""
    found = [manifest for _, manifest in store.manifests() if manifest["stage"] == stage]
    return sorted(found, key=lambda one: str(one["timing"]["finished"]), reverse=True)


def imported(source: dict[str, Any], store: Store) -> Checkpoint:
    """The model as a checkpoint of the store; imported now if it is not there yet."""
    if "ref" in source:
        return _checkpoint(store, store.find(source["ref"])[1])
    from rich.console import Console

    from effllm.pipelines.engine.display import Display
    from effllm.pipelines.engine.executor import Run
    from effllm.pipelines.engine.planning import Options
    from effllm.pipelines.engine.tracking import NoLogger

    stage = {"_target_": "effllm.pipelines.stages.data.import_model.ImportModel", "source": source}
    graph = build_graph({"base": stage}, store)
    base = graph[0]
    if store.check_quickly(base.stage, base.digest) is None:
        display = Display(Console(stderr=True, highlight=False, soft_wrap=True))
        folder = store.root / "runs" / "generate" / base.digest[:12]
        labels = {"paper": "generate", "scale": "none"}
        Run(graph, store, folder, labels, NoLogger(), display, Options()).execute()
    return _checkpoint(store, {"stage": base.stage, "digest": base.digest})


def _checkpoint(store: Store, manifest: dict[str, Any]) -> Checkpoint:
    checkpoint = store.open(manifest["stage"], manifest["digest"], Checkpoint)
    if not isinstance(checkpoint, Checkpoint) or not (checkpoint.path / "config.json").is_file():
        raise ConfigError(f"{checkpoint.label} is no checkpoint")
    return checkpoint
