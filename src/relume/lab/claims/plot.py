"""Draws effects with their intervals, and courses along a setting, as SVG for light and dark pages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from relume.activations.plot import DARK, LIGHT
from relume.lab.stats import Interval

_WIDTH, _LEFT, _RIGHT, _ROW, _HEAD, _FOOT = 720, 230, 60, 22, 46, 26
_TALL, _TOP = 230, 20

# Outcomes also differ in shape.
_STYLE = """
svg { LIGHT --a: #2b6cb0; --b: #b3261e;
  --c: #8a6d00; --d: #6b4fa0;
  font: 12px system-ui, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) { svg { DARK --a: #7ab7ff; --b: #ff8a80; --c: #e0bf4d; --d: #c3a6ff; } }
.page { fill: var(--page); } .name { font-weight: 600; fill: var(--ink); } text { fill: var(--soft); }
.label { fill: var(--ink); text-anchor: end; } .x { text-anchor: middle; } .y { text-anchor: end; }
.band { fill: var(--night); } .grid { stroke: var(--grid); } .axis { stroke: var(--soft); stroke-width: .8; }
.a, .b, .c, .d { fill: none; stroke-width: 2; }
.a { stroke: var(--a); } .b { stroke: var(--b); } .c { stroke: var(--c); }
.d { stroke: var(--d); } .full { stroke: none; } .a.full { fill: var(--a); } .b.full { fill: var(--b); }
.open { fill: var(--page); } .part { stroke: var(--soft); stroke-width: 1.2; } .bar { stroke-width: 1.2; }
""".replace("LIGHT", LIGHT).replace("DARK", DARK)
_COLOUR = {"supported": "a", "contradicted": "b", "undecided": "c"}


@dataclass(frozen=True)
class Bar:
    """An effect in a row of a drawing.

    Attributes:
        label: what it is of.
        effect: with its interval.
        outcome: of the verdict on it.
        parts: estimates that it is a mean of, drawn as ticks.
    """

    label: str
    effect: Interval
    outcome: str
    parts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Panel:
    """Effects of one unit, on one scale; `margin` is the largest that does not matter."""

    unit: str
    bars: tuple[Bar, ...]
    margin: float


def effects(title: str, panels: Sequence[Panel]) -> str:
    """Panels below each other: a dot with its interval in each row, zero, and the band of what does not matter."""
    body, y = [], 0
    for panel in panels:
        body.append(f'<g transform="translate(0 {y})">{_panel(panel)}</g>')
        y += _HEAD + _ROW * len(panel.bars) + _FOOT
    marks = (("supported", 20), ("contradicted", 130), ("undecided", 255))
    key = "".join(f'{_mark(word, x, -4)}<text x="{x + 10}" y="0">{word}</text>' for word, x in marks)
    key += '<path class="part" d="M365 -9v10"/><text x="372" y="0">each task</text>'
    key += '<rect class="band" x="460" y="-11" width="20" height="13"/><text x="486" y="0">too small to matter</text>'
    body.append(f'<g transform="translate(0 {y + 14})">{key}</g>')
    return _document(title, y + 26, "".join(body))


def _panel(panel: Panel) -> str:
    ends = [end for bar in panel.bars for end in (bar.effect.low, bar.effect.high, *bar.parts)]
    ticks = _ticks(min(*ends, -panel.margin, 0.0), max(*ends, panel.margin, 0.0))
    low, high = ticks[0], ticks[-1]

    def px(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    bottom = _HEAD - 8 + _ROW * len(panel.bars)
    left, right = px(-panel.margin), px(panel.margin)
    parts = [
        f'<text class="name" x="{_LEFT}" y="20">{escape(panel.unit)}</text>',
        f'<rect class="band" x="{left:g}" y="30" width="{right - left:.1f}" height="{bottom - 30}"/>',
        *(f'<path class="grid" d="M{px(t):g} 30V{bottom}"/>' for t in ticks),
        f'<path class="axis" d="M{px(0):g} 30V{bottom}"/>',
        *(f'<text class="x" x="{px(t):g}" y="{bottom + 16}">{_number(t)}</text>' for t in ticks),
    ]
    for i, bar in enumerate(panel.bars):
        y = _HEAD + _ROW * i
        colour = _COLOUR[bar.outcome]
        parts += [
            f'<text class="label" x="{_LEFT - 10}" y="{y + 4}">{escape(bar.label)}</text>',
            *(f'<path class="part" d="M{px(p):g} {y - 5}v10"/>' for p in bar.parts),
            f'<path class="{colour}" d="M{px(bar.effect.low):g} {y}H{px(bar.effect.high):g}"/>',
            _mark(bar.outcome, px(bar.effect.estimate), y),
            f'<text x="{_WIDTH - _RIGHT + 8}" y="{y + 4}">{_number(bar.effect.estimate)}</text>',
        ]
    return "".join(parts)


def _mark(outcome: str, x: float, y: float) -> str:
    colour = _COLOUR[outcome]
    if outcome == "contradicted":
        return f'<rect class="{colour} full" x="{x - 4.5:g}" y="{y - 4.5:g}" width="9" height="9"/>'
    kind = "full" if outcome == "supported" else "open"
    return f'<circle class="{colour} {kind}" cx="{x:g}" cy="{y:g}" r="4.5"/>'


def courses(
    title: str,
    unit: str,
    levels: Sequence[str],
    lines: Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[float]]],
    along: str,
) -> str:
    """Lines over levels that are evenly spaced, with a bar for the interval at each where they are few.

    Args:
        levels: what is written below each; nothing where it is empty.
        lines: name, estimates, lower and upper ends, at each level; at most four.
    """
    left, right = 52, 130
    values = [v for _, mean, low, high in lines for v in (*mean, *low, *high)]
    ticks = _ticks(min(*values, 0.0), max(values))
    step = (_WIDTH - left - right) / max(len(levels) - 1, 1)

    def px(i: float) -> float:
        return round(left + 10 + i * (step - 20 / max(len(levels) - 1, 1)), 1)

    def py(value: float) -> float:
        return round(_TOP + 16 + (ticks[-1] - value) / (ticks[-1] - ticks[0]) * _TALL, 1)

    bottom = py(ticks[0])
    body = [f'<text class="name" x="{left}" y="20">{escape(unit)}</text>']
    body += [f'<path class="grid" d="M{left} {py(t):g}H{_WIDTH - right}"/>' for t in ticks]
    body += [f'<text class="y" x="{left - 8}" y="{py(t) + 4:g}">{_number(t)}</text>' for t in ticks]
    body += [
        f'<text class="x" x="{px(i):g}" y="{bottom + 18}">{escape(level)}</text>' for i, level in enumerate(levels)
    ]
    body.append(f'<text class="x" x="{(left + _WIDTH - right) / 2:g}" y="{bottom + 38}">{escape(along)}</text>')
    taken: list[float] = []
    order = sorted(range(len(lines)), key=lambda k: py(lines[k][1][-1]))
    for k in order:
        name, mean, low, high = lines[k]
        colour, nudge = "abcd"[k], 3 * (k - (len(lines) - 1) / 2)
        points = "L".join(f"{px(i) + nudge:g} {py(v):g}" for i, v in enumerate(mean))
        body.append(f'<path class="{colour}" d="M{points}"/>')
        if len(levels) <= 8:
            body += [
                f'<path class="{colour} bar" d="M{px(i) + nudge:g} {py(a):g}V{py(b):g}"/>'
                for i, (a, b) in enumerate(zip(low, high, strict=True))
            ]
        at = max(py(mean[-1]) + 4, taken[-1] + 15 if taken else 0.0)
        taken.append(at)
        body.append(
            f'<path class="{colour}" d="M{_WIDTH - right + 6} {at - 4:g}h16"/>'
            f'<text x="{_WIDTH - right + 28}" y="{at:g}">{escape(name)}</text>'
        )
    return _document(title, int(max(bottom + 50, max(taken) + 12)), "".join(body))


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers that reach from low to high."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    return minus(f"{value:.3g}")


def minus(text: str) -> str:
    """Numbers below zero as they are written."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def _document(title: str, height: int, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f'<rect class="page" width="{_WIDTH}" height="{height}"/>{body}</svg>\n'
    )
