"""Figures as text, the same on all pages."""

from __future__ import annotations

import numpy as np

from effllm.modules.evaluation.intervals import Interval


def number(value: float) -> str:
    """Four figures at most, never in exponents below a million."""
    if not np.isfinite(value) or value >= 1e6:
        return f"{value:.2e}"
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def change(value: float) -> str:
    """One digit after the point; large changes as `+36,168` and `+1.1e+06`."""
    form = "+.1e" if abs(value) >= 1e6 else "+,.0f" if abs(value) >= 1000 else "+.1f"
    return f"{value:{form}}"


def show(value: Interval | float | None, form: str = "") -> str:
    """`34.2 [33.1, 35.6]`; the value alone without an interval, empty for None.

    Args:
        value: what is shown.
        form: as Python has it, such as `.2f`; `.1%` multiplies by 100 and leaves the sign away,
            which titles and sentences have. Empty: see `number`; `+`: see `change`.
    """

    def written(one: float) -> str:
        return format(one, form).rstrip("%")

    if value is None:
        return ""
    shown = {"": number, "+": change}.get(form, written)
    return value.text(shown) if isinstance(value, Interval) else shown(value)
