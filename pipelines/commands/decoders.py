"""What `effllm generate` decodes with: models, drafts, heads and arbiters out of the store."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.modules.errors import ConfigError
from effllm.pipelines.artifacts.arbitration import Arbiters, ArbitrationPair, ArbitrationVerdicts
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.decoding import load_draft
from effllm.pipelines.artifacts.heads import Heads, describe_target
from effllm.pipelines.commands.asked import Asked, FirstLayers, Settings, StoredDraft
from effllm.pipelines.commands.launch import choose_device
from effllm.pipelines.engine.building import build
from effllm.pipelines.engine.graph import build_graph
from effllm.pipelines.engine.store import Store
from effllm.pipelines.stage import AnyArtifact
from effllm.pipelines.stages.decoding.loading import DecodingArm

if TYPE_CHECKING:
    from effllm.modules.decoding.session import Session
    from effllm.modules.heads.loaded import LoadedHeads

_BROUGHT = re.compile(r"[+~]*(model|draft|dtype)\b")  # settings of models that an arbiter brings


def open_session(settings: Settings, asked: Asked) -> tuple[Session, list[int], int]:
    """What decodes, the prompt's token ids, and the most tokens that may follow.

    Args:
        settings: everything but the prompt.
        asked: the prompt, and what was said of the settings.

    Raises:
        EffLLMError: for parts that do not fit; before a model is read where none is needed.
    """
    if settings.decoder.arbiter is not None:
        return _arbitrated(settings, asked, settings.decoder.arbiter)
    return _drafted(settings, asked)


def _drafted(settings: Settings, asked: Asked) -> tuple[Session, list[int], int]:
    from effllm.modules.decoding import drafts, joining
    from effllm.modules.decoding.proposers.base import StateReader
    from effllm.modules.inference.fast_path import speed_up

    parts = settings.decoder.model_dump(exclude_none=True)
    arm, wanted = build("decoder", DecodingArm, parts), settings.draft
    proposer = arm["proposer"]
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
    stored = None if named is None or by_heads else _opened(store, named, Checkpoint)
    checkpoint = imported(settings.model, store)
    tokenizer = checkpoint.load_tokenizer()
    prompt = joining.encode_prompt(
        tokenizer, asked.prompt, chat=settings.chat, system=settings.system
    )
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
    decoder = joining.Decoder(proposer, arm["verifier"], draft)
    session = decoder.join(model, tokenizer, stop_strings=tuple(settings.stop))
    return session, prompt, settings.max_new_tokens


def _heads(named: dict[str, Any] | None, checkpoint: Checkpoint, store: Store) -> LoadedHeads:
    """The heads that were named, or Amphista's that were trained last on this model.

    Raises:
        ConfigError: if the store has none.
        ArtifactError: if they belong to another model.
    """
    target = describe_target(checkpoint)
    if named is not None:
        heads = _opened(store, named, Heads)
        heads.require_target(target)
        return heads.ready()
    for manifest in _last_results(store, "train_heads"):
        heads = _opened(store, manifest, Heads)
        about = heads.about
        whole = about["settings"].get("ae_layers") and about["settings"].get("sa_layers")
        if whole and about["target"]["weights"] == target["weights"]:
            return heads.ready()
    raise ConfigError(
        f"{store.root} has no Amphista heads of this model; train some: effllm run paper=amphista "
        "execute.until=amphista_0.heads"
    )


def _arbitrated(settings: Settings, asked: Asked, wanted: str) -> tuple[Session, list[int], int]:
    from effllm.modules.arbitration.decoder import arbitrated_session, letter_tokenizer
    from effllm.modules.decoding.joining import encode_prompt

    for word in asked.overrides:
        if _BROUGHT.match(word):
            raise ConfigError(
                f"{word}: an arbiter decodes with the two models that it was trained on; leave it "
                "out, or take another decoder"
            )
    store = Store(Path(settings.paths.outputs))
    verdicts, pair = _verdicts(wanted, store)
    shipped, info = verdicts.shipped, pair.info
    pieces, special = info["pieces"], info["special"]
    letters = "".join(piece for number, piece in enumerate(pieces) if number not in special)
    unknown = sorted(set(asked.prompt) - set(letters))
    if unknown:
        problem = "".join(pieces[token] for token in pair.problems("test")[0].prompt)
        raise ConfigError(
            f"the prompt: pair {info['name']} does not know {unknown[0]!r}, its letters are "
            f"{letters}; a problem of it is {problem}"
        )
    tokenizer = letter_tokenizer(pieces, special)
    prompt = encode_prompt(tokenizer, asked.prompt, chat=settings.chat, system=settings.system)
    # Where nothing may be shipped the threshold is never reached, whatever the scores.
    rule = "warm" if shipped.rule == "target" else shipped.rule
    labels = verdicts.manifest["inputs"]["arbiters"]
    stored = (_opened(store, store.find(label)[1], Arbiters) for label in labels)
    arbiters = next(arbiters for arbiters in stored if arbiters.rule == rule)
    said = "no policy may be shipped, this is the target alone"
    if shipped.rule != "target":
        said = f"policy {arbiters.label}, seed {shipped.seed}, threshold {shipped.threshold:.3g}"
    print(f"[pair {info['name']}: {said}]", file=sys.stderr)
    session = arbitrated_session(
        pair.load(),
        arbiters.policies()[shipped.seed],
        shipped.threshold,
        tokenizer=tokenizer,
        stop_strings=tuple(settings.stop),
    )
    return session, prompt, min(settings.max_new_tokens, info["budget"])


def _verdicts(wanted: str, store: Store) -> tuple[ArbitrationVerdicts, ArbitrationPair]:
    """The verdicts that were named, or the last that ship a policy; and their pair of models.

    Raises:
        ConfigError: if the store has none.
    """
    named = wanted != "last"
    found = [store.find(wanted)[1]] if named else _last_results(store, "evaluate_policies")
    for manifest in found:
        verdicts = _opened(store, manifest, ArbitrationVerdicts)
        pair = _opened(store, store.find(manifest["inputs"]["pair"])[1], ArbitrationPair)
        if named or (pair.has_models and verdicts.shipped.rule != "target"):
            return verdicts, pair
    raise ConfigError(
        f"{store.root} has no arbiter that may be shipped; train one: effllm run paper=cospec "
        "execute.until=toy.verdicts"
    )


def _last_results(store: Store, stage: str) -> list[dict[str, Any]]:
    """Manifests of all results of a stage, the last one first."""
    found = [manifest for _, manifest in store.manifests() if manifest["stage"] == stage]
    return sorted(found, key=lambda one: str(one["timing"]["finished"]), reverse=True)


def imported(source: dict[str, Any], store: Store) -> Checkpoint:
    """The model as a checkpoint of the store; imported now if it is not there yet."""
    if "ref" in source:
        return _opened(store, store.find(source["ref"])[1], Checkpoint)
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
    manifest = store.manifest(base.stage, base.digest)
    assert manifest is not None
    return _opened(store, manifest, Checkpoint)


def _opened(store: Store, manifest: dict[str, Any], kind: type[AnyArtifact]) -> AnyArtifact:
    """A result of a kind.

    Raises:
        ConfigError: if it is of another.
    """
    found = store.open(manifest["stage"], manifest["digest"], kind)
    if manifest["kind"] != kind.kind:
        raise ConfigError(f"{found.label} holds no {kind.kind}, but {manifest['kind']}")
    assert isinstance(found, kind)
    return found
