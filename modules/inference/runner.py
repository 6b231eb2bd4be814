"""A model with its cache: feed tokens, get logits, take tokens back.

The runner knows which token ids its cache covers, so it can be brought to any other sequence with
the fewest passes (`sync`). Chains and trees go through the same call. A model that
`fast_path.speed_up` made ready is run by compiled code. Batch size is one.
"""

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from effllm.modules.errors import UnsupportedModelError
from effllm.modules.inference.attention import group_queries
from effllm.modules.inference.cache import SlotCache
from effllm.modules.inference.choice import best_tokens
from effllm.modules.inference.fast_path import compiled_steps
from effllm.modules.inference.native_step import NativeSteps

_STRETCH = 64  # tokens of a prompt in one compiled pass


class ModelRunner:
    """Runs one causal language model at batch size one.

    Args:
        model: put into eval mode; attends by `attention.py` where it attended by sdpa. Runs as
            `fast_path.speed_up` made it ready, if it did.

    Attributes:
        ids: token ids that the cache covers.
        passes: forward passes so far.
        vocabulary: token ids that can be fed are below this.
        token_ids: (n,) the token of each column of the logits; None if column i is token i.
        no_trees: why trees cannot be judged; empty if they can.
        keeps_states: set to have `states` after every call of `advance`.
        states: (n, C) what the head read of the n tokens fed last, in the model's dtype.

    Raises:
        UnsupportedModelError: for models whose state cannot be rolled back.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        refuse_unsupported(model)
        self.model = model.eval()
        group_queries(self.model)
        self.steps = compiled_steps(model)
        head: Any = model.get_output_embeddings()
        self.token_ids: Tensor | None = getattr(head, "token_ids", None)
        known: Any = head if self.token_ids is None else model.get_input_embeddings()
        self.vocabulary = int(known.weight.shape[0])
        self.passes = 0
        config: Any = model.config.get_text_config(decoder=True)
        self.layers = int(config.num_hidden_layers)
        kinds = [type(one) is DynamicSlidingWindowLayer for one in _cache_layers(model)]
        self.mixed, slides = any(kinds) and not all(kinds), any(kinds)
        self.window: int | None = config.sliding_window if slides else None
        self.no_trees = tree_obstacle(model)
        self.keeps_states = False
        self.states: Tensor | None = None
        self.limit = int(getattr(config, "max_position_embeddings", 0)) or None
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.cache = SlotCache(self.layers)
        self.ids: list[int] = []

    @torch.no_grad()
    def advance(
        self,
        tokens: Sequence[int],
        *,
        rows: int | None = None,
        parents: Sequence[int] | None = None,
    ) -> Tensor:
        """Feed tokens that follow what is cached.

        Args:
            tokens: n >= 1 token ids.
            rows: logits wanted, counted from the last token; all n if None.
            parents: index of each token's parent among `tokens`, -1 for the cached prefix; None
                for a chain. Of a tree, only a path may stay: call `keep` before the next pass.

        Returns:
            (rows, V) float32 logits; row i judges what follows token i. V counts the columns
            of the head: see `token_ids`.

        Raises:
            ValueError: for no tokens.
            UnsupportedModelError: for a tree that the model cannot judge, or a model that does not
                fill its cache.
        """
        if not tokens:
            raise ValueError("nothing to feed")
        start, count = len(self.ids), len(tokens)
        if parents is not None:
            self._refuse_tree(parents)
        if self.steps is None:
            logits = self._pass(tokens, rows or count, parents)
        elif parents is None:
            logits = self._compiled_passes(self.steps, tokens, rows or count)
        else:
            depths, seen = tree_layout(parents)
            self.states = self._room_for_states(count)
            logits = self.steps.advance(
                tokens,
                self.cache,
                start,
                rows=rows or count,
                depths=depths,
                seen=seen,
                states=self.states,
            )
        self.ids += tokens
        self.passes += 1
        return logits

    def _refuse_tree(self, parents: Sequence[int]) -> None:
        name = type(self.model).__name__
        if self.no_trees:
            raise UnsupportedModelError(f"{name}: {self.no_trees}")
        deepest = max(tree_layout(parents)[0])
        if self.window is not None and deepest >= self.window:  # compiled code counts by slots
            raise UnsupportedModelError(
                f"{name}: a tree of {deepest} levels is deeper than its window of {self.window}"
            )

    def _compiled_passes(self, steps: NativeSteps, tokens: Sequence[int], rows: int) -> Tensor:
        """A chain, a few tokens at a time: what is between two layers stays in the processor."""
        found = []
        self.states = self._room_for_states(len(tokens))
        for first in range(0, len(tokens), _STRETCH):
            part = tokens[first : first + _STRETCH]
            here = range(first, first + len(part))
            wanted = sum(place >= len(tokens) - rows for place in here)
            found.append(
                steps.advance(
                    part,
                    self.cache,
                    len(self.ids) + first,
                    rows=wanted,
                    depths=range(len(part)),
                    seen=_chain(len(part)),
                    states=None if self.states is None else self.states[first:],
                )
            )
        return found[0] if len(found) == 1 else torch.cat(found)

    def _room_for_states(self, count: int) -> Tensor | None:
        if not self.keeps_states:
            return None
        width = self.model.get_input_embeddings().weight.shape[1]
        return torch.empty(count, width, dtype=self.model.dtype)

    def _pass(self, tokens: Sequence[int], rows: int, parents: Sequence[int] | None) -> Tensor:
        """A pass of the model itself."""
        device = self.model.device
        start, count = len(self.ids), len(tokens)
        extra: dict[str, Any] = {}
        positions = torch.arange(start, start + count)
        if parents is not None:
            depths, seen = tree_layout(parents)
            positions = start + torch.tensor(depths)
            extra["attention_mask"] = self._tree_masks(positions, seen)
        output = self.model(
            input_ids=torch.tensor([list(tokens)], device=device),
            position_ids=positions[None].to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=rows,
            output_hidden_states=self.keeps_states,
            **extra,
        )
        if any(layer.length != start + count for layer in self.cache.slots):
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: not all of its layers fill the cache that they are "
                "given; speculative decoding needs that"
            )
        if self.keeps_states:
            self.states = output.hidden_states[-1][0]
        logits: Tensor = output.logits[0]
        return logits.float()

    def _tree_masks(self, positions: Tensor, seen: Tensor) -> Tensor | dict[str, Tensor]:
        """Additive masks (1, 1, n, start + n) of a tree after `start` cached tokens.

        Args:
            positions: (n,) of its nodes.
            seen: (n, n) as of `tree_layout`.

        Returns:
            One for all layers, or one for each kind where layers with a window stand beside others.
        """
        start, count = len(self.ids), len(positions)
        shown = torch.cat([torch.ones(count, start, dtype=torch.bool), seen], dim=1)
        distance = positions[:, None] - torch.cat([torch.arange(start), positions])
        near = shown if self.window is None else shown & (distance < self.window)
        full, windowed = (
            torch.zeros(one.shape, dtype=self.model.dtype)
            .masked_fill_(~one, torch.finfo(self.model.dtype).min)[None, None]
            .to(self.model.device)
            for one in (shown, near)
        )
        if self.mixed:
            return {"full_attention": full, "sliding_attention": windowed}
        return windowed

    def rollback_to(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self.cache.rollback_to(length)
        del self.ids[length:]

    def keep(self, prefix: int, path: Sequence[int]) -> None:
        """Of the tokens after `prefix`, keep those at the offsets in `path`, in order."""
        kept = [self.ids[prefix + offset] for offset in path]
        if list(path) == list(range(len(path))):
            self.rollback_to(prefix + len(path))
            return
        slots = [prefix + offset for offset in path]
        if self.steps is None:
            self.cache.keep_slots(prefix, slots)
        else:
            self.steps.keep(self.cache, prefix, slots)
        self.ids[prefix:] = kept

    def sync(self, ids: Sequence[int]) -> Tensor:
        """Make the cache cover exactly `ids`, and judge what follows them.

        Rolls back to the longest common prefix and feeds the rest, at least the last token.

        Returns:
            (1, V) float32 logits after the last token.

        Raises:
            UnsupportedModelError: if the model has no such token.
        """
        common = 0
        for mine, wanted in zip(self.ids, ids, strict=False):
            if mine != wanted:
                break
            common += 1
        common = min(common, len(ids) - 1)
        fresh = list(ids[common:])
        if max(fresh) >= self.vocabulary:
            raise UnsupportedModelError(
                f"the text holds token {max(fresh)}, {type(self.model).__name__} knows only "
                f"{self.vocabulary}; target and draft need the same tokenizer"
            )
        self.rollback_to(common)
        return self.advance(fresh, rows=1)

    def likeliest(self, logits: Tensor, count: int, *, below: int) -> list[list[int]]:
        """The most likely tokens of each row of this model's logits, the best first.

        Args:
            logits: (n, V) as from `advance`.
            count: tokens wanted; fewer if the model knows fewer.
            below: token ids from here on do not exist; heads may be padded.
        """
        if self.token_ids is None:
            logits = logits[:, :below]
        if count == 1:
            columns = torch.tensor(best_tokens(logits), device=logits.device)[:, None]
        else:
            columns = logits.topk(min(count, logits.shape[1]), dim=-1).indices
        found: list[list[int]] = (
            columns if self.token_ids is None else self.token_ids[columns]
        ).tolist()
        return found


@lru_cache(maxsize=_STRETCH)
def _chain(count: int) -> Tensor:
    """(n, n) bool, which of a chain's tokens sees which."""
    return torch.ones(count, count, dtype=torch.bool).tril()


def tree_layout(parents: Sequence[int]) -> tuple[list[int], Tensor]:
    """Depth of each node, and which nodes each node sees.

    Args:
        parents: parent of each node, -1 for none; parents come before children.

    Returns:
        n depths from 0, and (n, n) bool, True = the row's node or one of its ancestors.

    Raises:
        ValueError: if a parent does not come before its child.
    """
    count = len(parents)
    depths, seen = [0] * count, [[False] * count for _ in parents]
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise ValueError(f"node {node} has parent {parent}; parents must come first")
        if parent >= 0:
            depths[node] = depths[parent] + 1
            seen[node] = list(seen[parent])
        seen[node][node] = True
    return depths, torch.tensor(seen)


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Refuse models that cannot forget tokens, or that are not causal language models.

    Raises:
        UnsupportedModelError: names the model's class.
    """
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name}: encoder-decoder models are not supported")
    config: Any = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    foreign = kinds - {"full_attention", "sliding_attention"}
    if getattr(model, "_is_stateful", False) or foreign:
        raise UnsupportedModelError(
            f"{name}: it keeps a state that cannot be rolled back "
            f"({', '.join(sorted(foreign)) or 'recurrent'}); speculative decoding needs attention "
            "layers"
        )
    shared = {type(one) for one in _cache_layers(model)} - {DynamicLayer, DynamicSlidingWindowLayer}
    if shared or "past_key_values" not in inspect.signature(type(model).forward).parameters:
        raise UnsupportedModelError(
            f"{name}: not all of its layers keep a cache of their own; speculative decoding needs "
            "that"
        )


def tree_obstacle(model: PreTrainedModel) -> str:
    """Why a model cannot judge trees; empty if it can.

    In a tree, a token's position is its depth, not its place among those that are fed.
    """
    config: Any = model.config
    takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters
    if not takes_positions or getattr(config, "alibi", False):
        return "positions cannot be given to it (as with ALiBi), so it judges chains, not trees"
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo's windows
        return "its local layers count places in the cache, so it judges chains, not trees"
    return ""


def _cache_layers(model: PreTrainedModel) -> list[Any]:
    """What transformers itself would keep for each layer."""
    return list(DynamicCache(config=model.config).layers)
