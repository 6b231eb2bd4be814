"""Names of decoding arms, read off what they were built of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LIBRARY = {"plain": "generate", "lookup": "prompt lookup", "assisted": "assisted generation"}


@dataclass(frozen=True)
class Arm:
    """One way to decode.

    Attributes:
        key: its name in the configuration.
        about: its description by the stage that ran it; see `Decoder.about`.
    """

    key: str
    about: dict[str, Any]

    @property
    def lossless(self) -> bool:
        """Whether its text must be the target's own."""
        return bool(self.about["lossless"])

    @property
    def tokens(self) -> int:
        """Most tokens drafted per round (K)."""
        proposer = self.about["proposer"] or {}
        drafted = sum(self._widths) or proposer.get("nodes") or self.about["drafted"] or 0
        return int(proposer.get("tokens", drafted))

    @property
    def verifier(self) -> dict[str, Any]:
        """Class and settings of the verifier; empty for transformers' own decoding."""
        return dict(self.about["verifier"] or {})

    @property
    def speculates(self) -> bool:
        """Whether it is one of our arms with drafts."""
        return bool(self.about["proposer"]) and self.tokens > 0

    @property
    def drafts_chain(self) -> bool:
        """Whether its drafts are chains, made without prompt lookup inside the drafter."""
        tree = self._widths or self.by_heads
        return self.speculates and not tree and not self.about["proposer"]["lookup"]

    @property
    def by_heads(self) -> bool:
        """Whether heads on the target's hidden state draft."""
        return "heads" in (self.about["draft"] or {})

    @property
    def is_fly(self) -> bool:
        """FLy with both gate and window, not one of its ablations."""
        return (
            self._kind == "Fly" and self.verifier["window"] > 0 and self.verifier["threshold"] > 0
        )

    @property
    def drafter(self) -> str:
        """What drafts, such as `first 6 of 30 layers, K=8`."""
        if self.about["library"] or not self.speculates:
            return ""
        draft, name = self.about["draft"], "prompt lookup"
        if self.by_heads:
            return f"{head_title(draft['heads'], draft['settings'])}, {self.tokens} nodes"
        if draft is not None:
            name = f"draft model of {draft['parameters'] / 1e6:.3g}M"
            if draft["of_layers"]:
                name = f"first {draft['layers']} of {draft['of_layers']} layers"
        inside = " with lookup inside" if self.about["proposer"]["lookup"] else ""
        if self._widths:
            return f"{name}, tree {'+'.join(str(one) for one in self._widths)}"
        return f"{name}{inside}, K={self.tokens}"

    @property
    def rule(self) -> str:
        """What is kept, such as `FLy (W=3, gate 0.3)`."""
        match self.verifier:
            case {"class": "Fly", "window": window, "threshold": threshold}:
                parts = [f"W={window}" if window else "no window"]
                unit = "" if self.verifier["measure"] == "top" else " of ln V"
                parts += [f"gate {threshold:g}{unit}" if threshold > 0 else "no gate"]
                parts += ["official window"] * (self.verifier["window_check"] == "official")
                return f"FLy ({', '.join(parts)})"
            case {"class": "Margin", "margin": margin}:
                return f"margin {margin:g} nats"
            case {"class": "Typical", "epsilon": epsilon, "delta": delta}:
                return f"typical ({epsilon:g}, {delta:g})"
        return self._kind.lower()

    @property
    def title(self) -> str:
        """Drafter and rule."""
        if self.about["library"]:
            tokens = f", K={self.tokens}" if self.tokens else ""
            return f"transformers: {_LIBRARY[self.about['library']]}{tokens}"
        if not self.speculates:
            return "Plain decoding"
        return f"{self.drafter[0].upper()}{self.drafter[1:]}: {self.rule}"

    def same_drafts(self, other: Arm) -> bool:
        """Whether two arms differ in what they keep alone."""
        keys = ("library", "proposer", "draft")
        return all(self.about[key] == other.about[key] for key in keys)

    @property
    def _widths(self) -> list[int]:
        """Candidates at each depth of a drafted tree; empty for chains."""
        return list((self.about["proposer"] or {}).get("widths", []))

    @property
    def _kind(self) -> str:
        return str(self.verifier.get("class", ""))


def head_title(name: str, settings: Mapping[str, Any]) -> str:
    """Drafting heads in words, such as `Amphista without encoder`.

    Args:
        name: of their class.
        settings: what they were made with.
    """
    if name == "Medusa":
        return "Medusa-1" if settings["layers"] == 1 else f"Medusa, {settings['layers']} blocks"
    if name == "MedusaToken":
        return "Medusa + chosen token"
    parts = {
        "encoder": settings["ae_layers"],
        "staged layers": settings["sa_layers"],
        "chosen token": settings["reads_token"],
        "identity start": settings["identity_start"],
    }
    missing = [part for part, there in parts.items() if not there]
    return f"Amphista without {' and '.join(missing)}" if missing else "Amphista"
