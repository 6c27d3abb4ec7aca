"""Drawings of a report as inline SVG, from plain numbers.

Colours are CSS classes, so one drawing serves light and dark.

Every drawing has a title and a description for screen readers; paths are run-length coded and rounded to stay small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from markupsafe import Markup, escape
from torch import Tensor

from relume.activations import Zone
from relume.report.looks import LOOKS, UNREACHED
from relume.report.numbers import number

WIDTH, HEIGHT = 320, 132
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 20


def svg(
    kind: str, box: tuple[float, float], title: str, body: str, *, stretch: bool = False, role: str = "img"
) -> Markup:
    """One drawing; role "group" where its parts are to be reached one by one."""
    fit = ' preserveAspectRatio="none"' if stretch else ""
    return Markup('<svg class="{}" viewBox="0 0 {:g} {:g}"{} role="{}"><title>{}</title>{}</svg>').format(
        kind, *box, Markup(fit), role, title, Markup(body)
    )


def strip(codes: Tensor, order: Tensor, title: str, budget: int) -> tuple[Markup, int]:
    """Units over time: a row per unit, a column per window, coloured by state.

    Args:
        codes: uint8 [columns, units], indices into LOOKS.
        order: units from bottom to top.
        title: for screen readers.
        budget: bytes that the drawing may take; beyond it, only each second, fourth, … unit is drawn.

    Returns:
        The drawing, and how many units it shows.
    """
    columns = codes.shape[0]
    every = max(1, math.ceil(len(order) / 96))
    while True:
        rows = codes.numpy()[:, order.numpy()[::-1][::every]].T.tolist()
        paths = _runs(rows)
        size = sum(map(len, paths.values()))
        if size <= budget or len(rows) <= 4:
            break
        every *= 2
    body = "".join(f'<path class="u-{LOOKS[c].key}" d="{d}"/>' for c, d in sorted(paths.items()))
    return svg("strip", (columns, len(rows)), title, body, stretch=True), len(rows)


def _runs(rows: list[list[int]]) -> dict[int, str]:
    """Rectangles by code: equal neighbours in a row are one, equal rows on top of each other too."""
    paths: dict[int, list[str]] = {}
    top = 0
    while top < len(rows):
        bottom = top + 1
        while bottom < len(rows) and rows[bottom] == rows[top]:
            bottom += 1
        row, left = rows[top], 0
        while left < len(row):
            right = left + 1
            while right < len(row) and row[right] == row[left]:
                right += 1
            if row[left] != UNREACHED:
                w, h = right - left, bottom - top
                paths.setdefault(row[left], []).append(f"M{left} {top}h{w}v{h}h-{w}z")
            left = right
        top = bottom
    return {code: "".join(parts) for code, parts in paths.items()}


def firing_histogram(rates: Tensor, title: str) -> Markup:
    """How many units fire on which share of inputs: a bar for exactly none, then ten bars of 10 % each.

    Args:
        rates: float64 [units], in [0, 1]; NaN is left out.
    """
    rates = rates[torch.isfinite(rates)]
    none = int((rates == 0).sum())
    bins = torch.histc(rates[rates > 0], 10, 0, 1).int().tolist()
    most = max([none, *bins, 1])
    inner, base = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM
    step = inner / 11.5

    def bar(x: float, n: int, kind: str, label: str) -> str:
        height = (base - TOP - 10) * n / most
        number = f'<text class="n" x="{x + step * 0.42:.0f}" y="{base - height - 3:.0f}">{n}</text>' if n else ""
        return (
            f'<rect class="{kind}" x="{x:.1f}" y="{base - height:.1f}" width="{step * 0.84:.1f}" '
            f'height="{height:.1f}"><title>{label}: {n}</title></rect>{number}'
        )

    body = [axes()]
    body.append(bar(LEFT + 1, none, "u-dead", "units that never fire"))
    start = LEFT + 1.5 * step
    body += [bar(start + i * step, n, "u-alive", f"{i * 10}–{i * 10 + 10} %") for i, n in enumerate(bins)]
    body.append(f'<text class="x" x="{LEFT + 1 + step * 0.42:.0f}" y="{HEIGHT - 6}">none</text>')
    body += [f'<text class="x" x="{start + i * step:.0f}" y="{HEIGHT - 6}">{i * 10} %</text>' for i in (0, 2, 4, 6, 8)]
    body.append(f'<text class="y" x="{WIDTH}" y="{HEIGHT - 6}">100 %</text>')
    return svg("chart", (WIDTH, HEIGHT), title, "".join(body))


def axes() -> str:
    return f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'


def _ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers within [low, high]."""
    raw = (high - low) / 4 or 1.0
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def top_of(low: float, high: float) -> float:
    """The first round number at or above `high`."""
    ticks = _ticks(low, high)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else (high - low) or 1.0
    return high if not ticks or high - ticks[-1] < step * 1e-6 else ticks[-1] + step


class Frame:
    """Axes with round ticks, and the way from data to points."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        (self.x0, x1), (self.y0, y1) = x, y
        self.kx = (WIDTH - LEFT - RIGHT) / ((x1 - self.x0) or 1)
        self.ky = (HEIGHT - TOP - BOTTOM) / ((y1 - self.y0) or 1)
        self.x_range, self.y_range = x, y

    def px(self, x: float) -> float:
        return round(LEFT + (x - self.x0) * self.kx, 1)

    def py(self, y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - self.y0) * self.ky, 1)

    def y_axis(self) -> str:
        return axes() + "".join(
            f'<path class="grid" d="M{LEFT} {self.py(t):g}H{WIDTH - RIGHT}"/>'
            f'<text class="y" x="{LEFT - 4}" y="{self.py(t) + 3:g}">{number(t)}</text>'
            for t in _ticks(*self.y_range)
        )

    def x_axis(self, unit: str) -> str:
        ticks = _ticks(*self.x_range)
        words = [number(t) for t in ticks]
        if words and unit:
            words[-1] += f" {unit}"
        return "".join(
            f'<text class="x" x="{self.px(t):g}" y="{HEIGHT - 6}">{word}</text>'
            if self.px(t) + 2.7 * len(word) <= WIDTH
            else f'<text class="y" x="{WIDTH}" y="{HEIGHT - 6}">{word}</text>'
            for t, word in zip(ticks, words, strict=True)
        )


def lines(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], title: str, unit: str = "") -> Markup:
    """Curves over steps; each in its own colour and dashes, up to four.

    Args:
        series: (label, points) each.
        unit: written after the last x tick.
    """
    points = [p for _, ps in series for p in ps]
    ys = [y for _, y in points] or [0.0]
    low, high = min(0.0, *ys), max(ys)
    frame = Frame((0, max([x for x, _ in points] or [1])), (low, top_of(low, high) if high > low else low + 1))
    body = [frame.y_axis(), frame.x_axis(unit)]
    for i, (label, ps) in enumerate(series):
        ps = _thin(list(ps), 80)
        d = "M" + "L".join(f"{frame.px(x):g} {frame.py(y):g}" for x, y in ps)
        body.append(f'<path class="line l{i % 4}" d="{d}"><title>{escape(label)}</title></path>')
    return svg("chart", (WIDTH, HEIGHT), title, "".join(body))


def _thin(points: list[tuple[float, float]], at_most: int) -> list[tuple[float, float]]:
    n = len(points)
    return points if n <= at_most else [points[round(i * (n - 1) / (at_most - 1))] for i in range(at_most)]


def deaths(
    steps: Sequence[int], dead: Sequence[int | None], died: Sequence[tuple[int, int]], units: int, title: str
) -> Markup:
    """Dead units in each drawn window as a stepped line, and each death's own step as a mark below it."""
    known = [(s, d) for s, d in zip(steps, dead, strict=True) if d is not None]
    last = max(steps, default=1)
    frame = Frame((0, max(last, 1)), (0, top_of(0, units)))
    body = [frame.y_axis(), frame.x_axis("steps")]
    if known:
        d = f"M{frame.px(0):g} {frame.py(known[0][1]):g}"
        at = known[0][1]
        for s, n in known:
            d += f"H{frame.px(s):g}" + (f"V{frame.py(n):g}" if n != at else "")
            at = n
        d += f"H{frame.px(last):g}"
        body.append(f'<path class="line l0" d="{d}"/>')
    base = HEIGHT - BOTTOM
    marks = sorted({f"M{frame.px(s):g} {base}v-5" for s, _ in died})[:160]
    if marks:
        body.append(f'<path class="mark" d="{"".join(marks)}"/>')
    return svg("chart", (WIDTH, HEIGHT), title, "".join(body))


def ranges(low: Tensor, mean: Tensor, high: Tensor, flat: Zone, title: str, at_most: int = 64) -> Markup:
    """For each unit the span of its pre-activation, lowest to highest, with its mean; the flat zone is shaded.

    Args:
        low, mean, high: float64 [units]; NaN units are left out. Drawn in order of `high`; thinned to `at_most`.
    """
    keep = torch.isfinite(low) & torch.isfinite(high) & torch.isfinite(mean)
    triples = sorted(zip(high[keep].tolist(), mean[keep].tolist(), low[keep].tolist(), strict=True))
    n = len(triples)
    if n > at_most:
        triples = [triples[round(i * (n - 1) / (at_most - 1))] for i in range(at_most)]
    if not triples:
        return svg("chart", (WIDTH, HEIGHT), title, axes())
    bottom = min(0.0, *(t[2] for t in triples))
    top = max(0.0, *(t[0] for t in triples))
    if top == bottom:
        top = bottom + 1
    frame = Frame((0, len(triples)), (bottom, top))
    shaded = []
    for a, b in flat.intervals:
        upper, lower = frame.py(min(b, top)), frame.py(max(a, bottom))
        if lower > upper:
            shaded.append(
                f'<rect class="flat" x="{LEFT}" y="{upper:g}" width="{WIDTH - LEFT - RIGHT}" '
                f'height="{lower - upper:g}"><title>flat zone</title></rect>'
            )
    spans, means = [], []
    for i, (h, m, lo) in enumerate(triples):
        x = frame.px(i + 0.5)
        spans.append(f"M{x:g} {frame.py(lo):g}V{frame.py(h):g}")
        means.append(f"M{x - 1.2:g} {frame.py(m):g}h2.4")
    body = [
        *shaded,
        frame.y_axis(),
        f'<path class="span" d="{"".join(spans)}"/>',
        f'<path class="mean" d="{"".join(means)}"/>',
        f'<path class="zero" d="M{LEFT} {frame.py(0):g}H{WIDTH - RIGHT}"/>',
        f'<text class="x" x="{(WIDTH + LEFT) / 2:.0f}" y="{HEIGHT - 6}">units, by their highest pre-activation</text>',
    ]
    return svg("chart", (WIDTH, HEIGHT), title, "".join(body))
