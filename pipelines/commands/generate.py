"""`effllm generate`: prompt in, streamed text out, with a summary of speed and acceptance."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from effllm.modules.errors import ConfigError
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.heads import Heads, describe_target
from effllm.pipelines.commands.asked import (
    FirstLayers,
    NoDraft,
    StoredDraft,
    check_settings,
    read_arguments,
)
from effllm.pipelines.commands.composing import compose, one_line
from effllm.pipelines.commands.launch import choose_device, quieten_libraries
from effllm.pipelines.commands.memory import keep_freed_memory
from effllm.pipelines.engine.building import build
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.interrupts import raise_if_asked
from effllm.pipelines.engine.store import Store
from effllm.pipelines.stages.decoding.loading import DecodingArm

if TYPE_CHECKING:
    from effllm.modules.decoding.records import Generation
    from effllm.modules.heads.loaded import LoadedHeads


def generate_command(words: Sequence[str], file: Path | None = None) -> int:
    """`effllm generate PROMPT KEY=VALUE…`.

    Args:
        words: prompt and settings, see `read_arguments`.
        file: holds the prompt instead.

    Raises:
        EffLLMError: what went wrong, on one line; before a model is loaded where none is needed.
    """
    asked = read_arguments(words, file)
    composed = compose(asked.overrides, "generate")
    try:
        plain: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise one_line(error) from error
    settings = check_settings(plain)
    quieten_libraries()
    keep_freed_memory()
    from effllm.modules.decoding.joining import encode_prompt, join_session

    decoder = build("decoder", DecodingArm, settings.decoder.model_dump())
    proposer, verifier = decoder["proposer"], decoder["verifier"]
    by_heads = _drafts_by_heads(proposer)
    if not by_heads:
        _check_draft(proposer, settings.draft)
    elif settings.draft.kind == "first_layers":
        raise ConfigError(
            "draft=first_layers: this decoder drafts by trained heads; leave out draft=…, or name "
            "them: draft=checkpoint draft.ref=train_heads/<digest>"
        )
    device = choose_device(settings.trainer.model_dump())
    store = Store(Path(settings.paths.outputs))
    stored = None if by_heads else _stored_draft(settings.draft, store)
    checkpoint = imported(settings.model, store)
    tokenizer = checkpoint.load_tokenizer()
    system = settings.system if asked.system is None else asked.system
    prompt = encode_prompt(tokenizer, asked.prompt, chat=settings.chat, system=system)
    checkpoint.require_context(len(prompt), "the prompt")
    heads = _heads(settings.draft, checkpoint, store) if by_heads else None

    from effllm.modules.decoding.early_exit import first_layers
    from effllm.modules.inference.fast_path import speed_up

    model = checkpoint.load_model(settings.dtype, device, settings.device_map)
    path = speed_up(model)
    if path.reason:
        print(f"[{path.kind} passes, not compiled: {path.reason}]", file=sys.stderr)
    draft = None
    if stored is not None:
        draft = stored.load_draft(settings.dtype, device)
    elif settings.draft.kind == "first_layers":
        draft = first_layers(model, settings.draft.layers)
    if draft is not None:
        speed_up(draft)
    session = join_session(
        proposer, verifier, model, tokenizer, heads or draft, stop_strings=tuple(settings.stop)
    )

    def show(piece: str) -> None:
        raise_if_asked()
        print(piece, end="", flush=True)

    found = session.generate(
        prompt,
        settings.max_new_tokens,
        seed=settings.seed,
        on_text=show,
    )
    print()
    print(summary(found, len(prompt), session.verifier.lossless), file=sys.stderr)
    return 130 if found.stop == "interrupted" else 0


def _check_draft(proposer: Any, draft: NoDraft | FirstLayers | StoredDraft) -> None:
    """See that there is a draft model exactly where one is needed.

    Raises:
        ConfigError: if there is not.
    """
    if isinstance(proposer, partial) and draft.kind == "none":
        from effllm.modules.decoding.joining import NEEDS_DRAFT

        raise ConfigError(NEEDS_DRAFT)
    if not isinstance(proposer, partial) and draft.kind != "none":
        raise ConfigError(
            f"draft={draft.kind}: this decoder drafts without a model; take decoder=draft, "
            "draft_tree or draft_fly, or leave out draft=…"
        )


def _drafts_by_heads(proposer: Any) -> bool:
    """Whether a proposer, or a factory of one, drafts from the target's hidden states."""
    from effllm.modules.decoding.proposers.base import StateReader

    return isinstance(proposer, partial) and issubclass(proposer.func, StateReader)  # type: ignore[arg-type]


def _heads(
    draft: NoDraft | FirstLayers | StoredDraft, checkpoint: Checkpoint, store: Store
) -> LoadedHeads:
    """The heads that were named, or Amphista's that were trained last on this model.

    Raises:
        ConfigError: if the store has none.
        ArtifactError: if they belong to another model.
    """
    target = describe_target(checkpoint)
    if isinstance(draft, StoredDraft):
        wanted = [store.find(draft.ref)[1]]
    else:
        wanted = [one for _, one in store.manifests() if one["stage"] == "train_heads"]
        wanted.sort(key=lambda one: str(one["timing"]["finished"]), reverse=True)
    for manifest in wanted:
        found = store.open(manifest["stage"], manifest["digest"], Heads)
        if not isinstance(found, Heads) or not (found.path / "heads.json").is_file():
            raise ConfigError(f"{manifest['stage']}/{manifest['digest'][:12]} holds no heads")
        if isinstance(draft, StoredDraft):
            found.require_target(target)
            return found.ready()
        about = found.about
        whole = about["settings"].get("ae_layers") and about["settings"].get("sa_layers")
        if whole and about["target"]["weights"] == target["weights"]:
            return found.ready()
    raise ConfigError(
        f"{store.root} has no Amphista heads of this model; train some: effllm run paper=amphista "
        "execute.until=amphista_0.heads"
    )


def _stored_draft(draft: NoDraft | FirstLayers | StoredDraft, store: Store) -> Checkpoint | None:
    """The draft model's checkpoint, if it is one of the store.

    Raises:
        ConfigError: if the reference is no checkpoint.
    """
    return _stored(draft.ref, store) if draft.kind == "checkpoint" else None


def _stored(ref: str, store: Store) -> Checkpoint:
    _, manifest = store.find(ref)
    return _checkpoint(store, manifest["stage"], manifest["digest"])


def imported(source: dict[str, Any], store: Store) -> Checkpoint:
    """The model as a checkpoint of the store; imported now if it is not there yet."""
    if "ref" in source:
        return _stored(source["ref"], store)
    from rich.console import Console

    from effllm.pipelines.engine.display import Display
    from effllm.pipelines.engine.executor import Run
    from effllm.pipelines.engine.planning import Options
    from effllm.pipelines.engine.tracking import NoLogger

    stage = {"_target_": "effllm.pipelines.stages.data.import_model.ImportModel", "source": source}
    graph = build_graph({"base": stage}, store)
    one = graph[0]
    if store.check_quickly(one.stage, one.digest) is None:
        display = Display(Console(stderr=True, highlight=False, soft_wrap=True))
        folder = store.root / "runs" / "generate" / one.digest[:12]
        labels = {"paper": "generate", "scale": "none"}
        Run(graph, store, folder, labels, NoLogger(), display, Options()).execute()
    return _checkpoint(store, one.stage, one.digest)


def _checkpoint(store: Store, stage: str, digest: str) -> Checkpoint:
    artifact = store.open(stage, digest, Checkpoint)
    if not isinstance(artifact, Checkpoint) or not (artifact.path / "config.json").is_file():
        raise ConfigError(f"{stage}/{digest[:12]} is no checkpoint")
    return artifact


def summary(found: Generation, prompt_tokens: int, lossless: bool) -> str:
    """One line: speed, tokens per pass, acceptance."""
    drafted = sum(one.drafted for one in found.rounds)
    accepted = sum(one.accepted for one in found.rounds)
    speed = max(len(found.tokens) - 1, 0) / max(found.decode_seconds, 1e-9)
    parts = [
        f"{len(found.tokens)} tokens in {found.prefill_seconds + found.decode_seconds:.1f} s",
        f"{speed:.1f} tokens/s after the prompt ({prompt_tokens} tokens, "
        f"{found.prefill_seconds:.2f} s)",
        f"{found.acceptance_length:.2f} tokens per pass",
    ]
    if drafted:
        parts.append(f"{100 * accepted / drafted:.0f} % of {drafted} drafted tokens kept")
    if not lossless:
        parts.append(f"{sum(one.loosened for one in found.rounds)} loosened (not lossless)")
    return f"[{', '.join(parts)}; ended by {found.stop}]"
