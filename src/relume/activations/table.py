"""The tables of `relume activations`: one row per activation, or all that is known of each one named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from relume.activations.properties import Properties, properties
from relume.activations.registry import Activation, InputDependent, TwoInputs

_GRADIENT = {
    "positive": "never zero: |f′| ≥ {least:.3g}",
    "vanishes": "never exactly zero, but vanishes far out",
    "turns": "zero at x = {turn:.4g} alone",
    "flat": "exactly zero for {flat}",
    "varies": "as the input sets it",
}


def overview(activations: Sequence[Activation]) -> Table:
    """One row per activation."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    for header in ("f(x)", "flat zone"):
        table.add_column(header, overflow="fold")
    for header in ("gain", "backward", "bias shift"):
        table.add_column(header, justify="right", no_wrap=True)
    for a in activations:
        table.add_row(a.name, a.formula, str(a.flat), number(a.gain), number(a.backward_gain), number(a.mean))
    return table


def details(activation: Activation) -> Table:
    """All that is known of one activation, a line each."""
    table = Table(box=None, show_header=False, pad_edge=False, title=activation.name, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    found = properties(activation)
    rows = {
        "f(x)": activation.formula,
        "also called": ", ".join(activation.aliases),
        "flat zone": str(activation.flat),
        "saturated": str(activation.saturated),
        "linear": str(activation.linear_zone),
        "gradient": gradient_in_words(activation, found),
        "kinks": ", ".join(f"{k:.4g}" for k in found.kinks) or "none: f′ is continuous",
        "monotone": "yes" if found.monotone else "no",
        "bounded below": "no" if found.least == -math.inf else f"by {number(found.least)}",
        "gain": number(activation.gain) + torch_in_words(activation, found),
        "backward gain": number(activation.backward_gain),
        "mean, variance": f"{number(activation.mean)}, {number(activation.variance)} for standard normal x",
        "of": _of(activation),
        "from": activation.reference,
    }
    for what, value in rows.items():
        if value:
            table.add_row(what, value)
    return table


def to_dict(activation: Activation) -> dict[str, Any]:
    """Plain data, ready for JSON; infinities are written as the strings "inf" and "-inf"."""
    found = properties(activation)

    def plain(x: Any) -> Any:
        if isinstance(x, tuple):
            return [plain(v) for v in x]
        return str(x) if isinstance(x, float) and not math.isfinite(x) else x

    zones = {"flat": activation.flat, "saturated": activation.saturated, "linear": activation.linear_zone}
    return {
        "name": activation.name,
        "aliases": list(activation.aliases),
        "formula": activation.formula,
        "zones": {name: plain(zone.intervals) for name, zone in zones.items()},
        "gain": plain(activation.gain),
        "backward_gain": plain(activation.backward_gain),
        "mean": plain(activation.mean),
        "variance": plain(activation.variance),
        "reference": activation.reference,
        **{name: plain(getattr(found, name)) for name in Properties.__dataclass_fields__},
    }


def gradient_in_words(activation: Activation, found: Properties) -> str:
    words = _GRADIENT[found.gradient].format(least=found.least_slope, turn=found.turn, flat=activation.flat)
    return words + (", where f turns" if found.gradient == "turns" and not found.monotone else "")


def torch_in_words(activation: Activation, found: Properties) -> str:
    """What to add to the gain about torch's."""
    if found.torch_gain is None:
        return " (torch has none)"
    if math.isclose(found.torch_gain, activation.gain, rel_tol=1e-9):
        return " (torch's too)"
    return f" (torch's convention is {number(found.torch_gain)})"


def number(x: float) -> str:
    """Four digits, so that it reads the same on every machine."""
    if not math.isfinite(x):
        return "∞" if x > 0 else "−∞" if x < 0 else "–"
    text = f"{x:.4g}" if abs(x) > 1e-12 else "0"
    return text.replace("-", "−")


def _of(activation: Activation) -> str:
    """What zones and moments are about, where it isn't simply the function."""
    if isinstance(activation, TwoInputs):
        return "zones: of the first input; gains, mean and variance: of both, independent"
    if isinstance(activation, InputDependent):
        return "gains, mean and variance: of its shape at rest"
    return ""
