"""Draws activations as SVG: a panel each with the function, its derivative and its flat zone, on the same axes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

import torch

from relume.activations.properties import properties
from relume.activations.registry import Activation
from relume.activations.zones import Zone

_X, _Y = (-4.0, 4.0), (-2.0, 3.0)
_WIDTH, _HEIGHT = 320, 224
_LEFT, _RIGHT, _TOP, _BOTTOM = 26, 10, 44, 20
_COLUMNS = 3
_POINTS = 160
_ASIDE = 1e-6  # of a jump

_Piece = list[tuple[float, float]]

# Colours are those of the report, light and dark; for drawings that stand alone.
LIGHT = "--page: #fbfaf7; --ink: #1d2026; --soft: #5c626d; --grid: #eceae4; --night: #efece4;"
DARK = "--page: #16181d; --ink: #eceae4; --soft: #a3a8b2; --grid: #2a2e36;\n  --night: #33373f;"
_STYLE = """
svg { LIGHT --f: #2b6cb0; --d: #b3261e;
  font: 11px system-ui, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) { svg { DARK --f: #7ab7ff; --d: #ff8a80; } }
.page { fill: var(--page); } .name { font-weight: 600; font-size: 13px; fill: var(--ink); } text { fill: var(--soft); }
.flat { fill: var(--night); } .grid { stroke: var(--grid); } .axis { stroke: var(--soft); stroke-width: .8; }
.f, .d { fill: none; stroke-linejoin: round; } .f { stroke: var(--f); stroke-width: 2.2; }
.d { stroke: var(--d); stroke-width: 1.5; stroke-dasharray: 5 3; } .x { text-anchor: middle; } .y { text-anchor: end; }
""".replace("LIGHT", LIGHT).replace("DARK", DARK)


def svg(activations: Sequence[Activation]) -> str:
    """One SVG document, three panels to a row.

    Args:
        activations: at least one, drawn in this order.

    Returns:
        The document's text, self-contained, for light and dark pages, with a description for screen readers.
    """
    columns = min(_COLUMNS, len(activations))
    rows = -(-len(activations) // columns)
    width, height = columns * _WIDTH, rows * _HEIGHT + 26
    panels = "".join(
        f'<g transform="translate({i % columns * _WIDTH} {i // columns * _HEIGHT})">{_panel(a)}</g>'
        for i, a in enumerate(activations)
    )
    names = ", ".join(a.name for a in activations)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img"><title>{escape(f"Activation functions: {names}")}</title><style>{_STYLE}</style>'
        f'<defs><clipPath id="frame"><rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM}"/></clipPath></defs>'
        f'<rect class="page" width="{width}" height="{height}"/>{panels}{_legend(height - 12)}</svg>\n'
    )


def _panel(activation: Activation) -> str:
    flat = f"flat for {activation.flat}" if activation.flat else "nowhere flat"
    formula = activation.formula if len(activation.formula) <= 52 else activation.formula[:51] + "…"
    zeros = (f"M{_px(0):g} {_TOP}V{_HEIGHT - _BOTTOM}", f"M{_LEFT} {_py(0):g}H{_WIDTH - _RIGHT}")
    return "".join(
        [
            f"<title>{escape(f'{activation.name}: {activation.formula}, {flat}')}</title>",
            f'<text class="name" x="{_LEFT}" y="18">{escape(activation.name)}</text>',
            f'<text x="{_LEFT}" y="34">{escape(formula)}</text>',
            _shading(activation.flat),
            *(f'<path class="grid" d="M{_px(x):g} {_TOP}V{_HEIGHT - _BOTTOM}"/>' for x in (-4, -2, 2, 4)),
            *(f'<path class="grid" d="M{_LEFT} {_py(y):g}H{_WIDTH - _RIGHT}"/>' for y in (-2, -1, 1, 2, 3)),
            f'<path class="axis" d="{"".join(zeros)}"/>',
            *(f'<text class="x" x="{_px(x):g}" y="{_HEIGHT - 6}">{x}</text>' for x in (-4, -2, 0, 2, 4)),
            *(f'<text class="y" x="{_LEFT - 5}" y="{_py(y) + 4:g}">{y}</text>' for y in (-2, -1, 0, 1, 2, 3)),
            f'<g clip-path="url(#frame)">{_curves(activation)}</g>',
        ]
    ).replace(">-", ">−")


def _shading(flat: Zone) -> str:
    shaded = []
    for low, high in flat.intervals:
        left, right = _px(max(low, _X[0])), _px(min(high, _X[1]))
        if right > left:
            shaded.append(
                f'<rect class="flat" x="{left:g}" y="{_TOP}" width="{right - left:g}" '
                f'height="{_HEIGHT - _TOP - _BOTTOM}"/>'
            )
    return "".join(shaded)


def _curves(activation: Activation) -> str:
    """Both curves, broken where they jump."""
    breaks = [k for k in properties(activation).kinks if _X[0] < k < _X[1]]
    edges = [_X[0] - _ASIDE, *breaks, _X[1] + _ASIDE]
    function: list[_Piece] = []
    derivative: list[_Piece] = []
    for left, right in itertools.pairwise(edges):
        n = max(2, round(_POINTS * (right - left) / (_X[1] - _X[0])))
        x = torch.linspace(left + _ASIDE, right - _ASIDE, n, dtype=torch.float64, device="cpu")
        y, slope = activation.function(x), activation.derivative(x)
        continued = bool(function) and abs(function[-1][-1][1] - float(y[0])) < 1e-3
        points = list(zip(x.tolist(), y.tolist(), strict=True))
        if continued:
            function[-1].extend(points)
        else:
            function.append(points)
        derivative.append(list(zip(x.tolist(), slope.tolist(), strict=True)))
    return f'<path class="d" d="{_path(derivative)}"/><path class="f" d="{_path(function)}"/>'


def _path(pieces: list[_Piece]) -> str:
    return "".join("M" + "L".join(f"{_px(x):g} {_py(y):g}" for x, y in piece) for piece in pieces)


def _px(x: float) -> float:
    return round(_LEFT + (x - _X[0]) * (_WIDTH - _LEFT - _RIGHT) / (_X[1] - _X[0]), 1)


def _py(y: float) -> float:
    """Points far outside the frame are kept near it: the clip hides them."""
    y = min(max(y, _Y[0] - 5), _Y[1] + 5)
    return round(_HEIGHT - _BOTTOM - (y - _Y[0]) * (_HEIGHT - _TOP - _BOTTOM) / (_Y[1] - _Y[0]), 1)


def _legend(y: int) -> str:
    return (
        f'<path class="f" d="M{_LEFT} {y - 4}h22"/><text x="{_LEFT + 28}" y="{y}">f(x)</text>'
        f'<path class="d" d="M{_LEFT + 70} {y - 4}h22"/><text x="{_LEFT + 98}" y="{y}">f′(x)</text>'
        f'<rect class="flat" x="{_LEFT + 146}" y="{y - 11}" width="22" height="13"/>'
        f'<text x="{_LEFT + 174}" y="{y}">flat zone</text>'
    )
