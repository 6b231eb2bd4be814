"""Sites of a model with their weights, scores and Gram matrices, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

from effllm.modules.errors import ConfigError
from effllm.pipelines.artifacts.checkpoints import Checkpoint
from effllm.pipelines.artifacts.permutation import Permutation
from effllm.pipelines.artifacts.statistics import Grams
from effllm.pipelines.stage import StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from effllm.modules.permutation.problem import Problem
    from effllm.modules.permutation.sites import Site
    from effllm.modules.sparsity.patterns import Grouped
    from effllm.modules.sparsity.pruners import ScoringPruner


class SiteProblems:
    """What each site of a stage's model has to decide on.

    Args:
        ctx: of a stage with the inputs model, gram, heldout_gram, and start if it goes on from one.
        pruner: scores the weights on the dense model's calibration inputs.
        pattern: N:M.
        level: gather or free.
        device: of the weights; orders are searched on the CPU.

    Raises:
        ConfigError: if the pattern's groups do not divide the channels of a site, or the start was
            searched for another pattern, pruner or level.
    """

    def __init__(
        self,
        ctx: StageContext,
        pruner: ScoringPruner,
        pattern: Grouped,
        level: Literal["gather", "free"],
        device: str = "cpu",
    ) -> None:
        from effllm.modules.modeling.blocks import prunable_layers
        from effllm.modules.permutation.sites import free_sites, gather_sites

        if "start" in ctx.inputs:
            require_alike(ctx.input("start", Permutation), pattern, pruner, level)
        model = ctx.input("model", Checkpoint).load_model("float32", device)
        self.model, self.layers = model, prunable_layers(model)
        self.widths = {name: layer.columns for name, layer in self.layers.items()}
        self.grams, self.heldout = ctx.input("gram", Grams), ctx.input("heldout_gram", Grams)
        self.pruner, self.pattern = pruner, pattern
        self.sites = (
            free_sites(model)
            if level == "free"
            else gather_sites(self.grams.read_json("groups.json"), self.widths)
        )
        for site in self.sites:
            if site.columns % pattern.group:
                raise ConfigError(
                    f"site {site.name}: {site.columns} channels do not divide into groups of "
                    f"{pattern.group}; take another pattern"
                )
        self._read: dict[str, tuple[int, dict[str, Tensor]]] = {}  # the block read last, by label

    def problem(self, site: Site) -> Problem:
        """Weights, scores and calibration statistics of a site, a part per member and copy."""
        from effllm.modules.permutation.problem import Part, Problem

        parts = []
        for member in site.members:
            weight = self.layers[member.layer].read().float()
            gram = self._gram(self.grams, member.layer)
            score = self.score(member.layer)
            parts += [
                Part(weight[:, columns], score[:, columns], gram[columns][:, columns])
                for columns in member.columns
            ]
        return Problem(parts, self.pattern)

    def score(self, layer: str) -> Tensor:
        """(R, C) importance of a layer's weights."""
        weight = self.layers[layer].read().float()
        return self.pruner.score(weight, self._gram(self.grams, layer).diagonal())

    def heldout_grams(self, site: Site) -> list[Tensor]:
        """(n, n) of the held-out text, one per part of the site's problem."""
        return [
            self._gram(self.heldout, member.layer)[columns][:, columns]
            for member in site.members
            for columns in member.columns
        ]

    def each(self, ctx: StageContext, find: Callable[[str, Problem], Tensor]) -> dict[str, Tensor]:
        """Order per site, found one after the other; those found before an interruption are kept.

        Args:
            ctx: of the stage.
            find: (n,) order from a site's name and its problem.
        """
        orders = {}
        for number, site in enumerate(self.sites, start=1):
            stored = ctx.load_progress(site.name)
            if stored is None:
                stored = {"order": find(site.name, self.problem(site))}
                ctx.save_progress(site.name, stored)
            orders[site.name] = stored["order"]
            ctx.progress(number, len(self.sites), "site")
        return orders

    def row(self, site: Site, order: Tensor) -> dict[str, Any]:
        """What an order is worth at a site."""
        problem = self.problem(site)
        return {
            "site": site.name,
            "columns": site.columns,
            "efficacy": problem.efficacy(order),
            "heldout_error": problem.error(order, self.heldout_grams(site)),
        }

    def publish(
        self, ctx: StageContext, orders: Mapping[str, Tensor], about: Mapping[str, Any]
    ) -> dict[str, float | int]:
        """Write the permutation; means over sites."""
        from effllm.modules.permutation.orders import require_order
        from effllm.modules.permutation.sites import layer_orders

        rows = []
        for site in self.sites:
            require_order(orders[site.name], site.columns, f"site {site.name}")
            rows.append(self.row(site, orders[site.name]))
        layers = layer_orders(self.sites, orders, self.widths)
        Permutation.write(ctx.workdir, orders, layers, rows, about)
        names = ("efficacy", "heldout_error")
        means = {f"mean_{name}": sum(row[name] for row in rows) / len(rows) for name in names}
        return {"sites": len(rows), **means}

    def _gram(self, grams: Grams, layer: str) -> Tensor:
        index, _, name = layer.partition(".")
        held = self._read.get(grams.label)
        if held is None or held[0] != int(index):
            held = self._read[grams.label] = int(index), grams.block(int(index))
        return held[1][name].to(self.model.device)


def require_alike(start: Permutation, pattern: Grouped, pruner: ScoringPruner, level: str) -> None:
    """Refuse orders that were searched for something else.

    Raises:
        ConfigError: names what differs.
    """
    about = start.about
    for name, mine in (("pattern", pattern.name), ("pruner", pruner.name), ("level", level)):
        if about[name] != mine:
            raise ConfigError(
                f"{name} is {mine}, but its start was searched for {about[name]}; give both the "
                "same"
            )


def described(part: object) -> Any:
    """Class names and fields of nested dataclasses, for the history of a model."""
    if not is_dataclass(part) or isinstance(part, type):
        return part
    fields = {name: described(getattr(part, name)) for name in asdict(part)}
    return {"kind": type(part).__name__, **fields}
