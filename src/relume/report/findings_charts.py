"""Drawings of findings as inline SVG: how units went down, what moved them, how deaths went on from site to site."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from relume.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame, svg
from relume.report.numbers import number

# Sites of a chain that are drawn; the rest are counted in a last box.
CHAIN = 7
_BOX, _GAP = 38, 22
_ROW = 19


def fall(
    steps: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    high: Sequence[float],
    title: str,
    *,
    flat_below_zero: bool,
) -> Markup:
    """Mean pre-activation with its spread, and the highest, over the steps around a death at step 0.

    Args:
        steps: of the rows, ascending.
        mean, std, high: of the pre-activation in each row.
        title: for screen readers.
        flat_below_zero: shade what lies below zero.
    """
    keep = [i for i in range(len(steps)) if all(map(math.isfinite, (mean[i], std[i], high[i])))]
    if len(keep) < 2:
        return Markup("")
    x = [steps[i] for i in keep]
    m, s, h = ([values[i] for i in keep] for values in (mean, std, high))
    low = [a - b for a, b in zip(m, s, strict=True)]
    up = [a + b for a, b in zip(m, s, strict=True)]
    bottom, top = min(0.0, *low, *h), max(0.0, *up, *h)
    frame = Frame((x[0], x[-1]), (bottom, top if top > bottom else bottom + 1))
    body = []
    if flat_below_zero and bottom < 0:
        y = frame.py(0)
        body.append(
            f'<rect class="flat" x="{LEFT}" y="{y:g}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{HEIGHT - BOTTOM - y:g}"><title>flat zone</title></rect>'
        )
    body += [frame.y_axis(), frame.x_axis("steps"), _death(frame)]
    edge = "L".join(f"{frame.px(a):g} {frame.py(b):g}" for a, b in [*zip(x, up, strict=True)])
    back = "L".join(f"{frame.px(a):g} {frame.py(b):g}" for a, b in [*zip(x, low, strict=True)][::-1])
    body += [
        f'<path class="band" d="M{edge}L{back}z"><title>mean ± standard deviation</title></path>',
        f'<path class="zero" d="M{LEFT} {frame.py(0):g}H{WIDTH - RIGHT}"/>',
        _line(frame, x, m, "l1 plain", "mean"),
        _line(frame, x, h, "l0", "highest"),
    ]
    return svg("chart", (WIDTH, HEIGHT), title, "".join(body))


def curves(steps: Sequence[int], named: Sequence[tuple[str, Sequence[float]]], title: str) -> Markup:
    """Curves over steps around a death at step 0, with zero marked; empty where there is nothing to see.

    Args:
        steps: of the rows, ascending.
        named: (name, value in each row) each; at most four.
        title: for screen readers.
    """
    known = [(name, [v if math.isfinite(v) else 0.0 for v in values]) for name, values in named]
    every = [v for _, values in known for v in values] or [0.0]
    bottom, top = min(0.0, *every), max(0.0, *every)
    if len(steps) < 2 or bottom == top:
        return Markup("")
    frame = Frame((steps[0], steps[-1]), (bottom, top))
    body = [
        frame.y_axis(),
        frame.x_axis("steps"),
        _death(frame),
        f'<path class="zero" d="M{LEFT} {frame.py(0):g}H{WIDTH - RIGHT}"/>',
    ]
    body += [_line(frame, steps, values, f"p{i % 4}", name) for i, (name, values) in enumerate(known)]
    return svg("chart", (WIDTH, HEIGHT), title, "".join(body))


def _death(frame: Frame) -> str:
    x0, x1 = frame.x_range
    if not x0 <= 0 <= x1:
        return ""
    d = f"M{frame.px(0):g} {TOP}V{HEIGHT - BOTTOM}"
    return f'<path class="when" d="{d}"><title>last step it fired at</title></path>'


def _line(frame: Frame, x: Sequence[float], y: Sequence[float], kind: str, label: str) -> str:
    d = "M" + "L".join(f"{frame.px(a):g} {frame.py(b):g}" for a, b in zip(x, y, strict=True))
    return f'<path class="line {kind}" d="{d}"><title>{escape(label)}</title></path>'


def bars(parts: Sequence[tuple[str, float]], title: str) -> Markup:
    """Named numbers as bars to the left (down) and right (up) of zero."""
    if not parts:
        return Markup("")
    names = 128
    inner = WIDTH - names - 12
    low, high = min(0.0, *(v for _, v in parts)), max(0.0, *(v for _, v in parts))
    # Room for a number at either end.
    left_room, right_room = (46 if low < 0 else 4), (46 if high > 0 else 4)
    scale = (inner - left_room - right_room) / ((high - low) or 1)
    zero = names + left_room - low * scale
    height = _ROW * len(parts) + 6
    body = []
    for i, (name, value) in enumerate(parts):
        y, length = 3 + _ROW * i, abs(value) * scale
        x = zero - length if value < 0 else zero
        words = f"{'+' if value > 0 else ''}{number(value)}"
        at, anchor = (x - 4, "end") if value < 0 else (x + length + 4, "start")
        body.append(
            f'<text x="0" y="{y + 12}">{escape(name)}</text>'
            f'<rect class="{"down" if value < 0 else "up"}" x="{x:.1f}" y="{y + 3}" width="{max(length, 0.8):.1f}" '
            f'height="{_ROW - 7}"/>'
            f'<text x="{at:.1f}" y="{y + 12}" style="text-anchor:{anchor}">{words}</text>'
        )
    body.append(f'<path class="zero" d="M{zero:.1f} 0V{height}"/>')
    return svg("chart", (WIDTH, height), title, "".join(body))


@dataclass(frozen=True)
class Link:
    """One box of a chain: a site, what became of it, and where the page tells of it."""

    site: str
    words: str
    target: str


def chain(links: Sequence[Link], title: str) -> Markup:
    """Sites from the root of a cascade to what followed, with arrows between.

    Args:
        links: root first; beyond `CHAIN` followers the rest are counted in a last box.
    """
    shown = list(links)
    if len(links) > CHAIN + 1:
        rest = len(links) - CHAIN
        shown = [*links[:CHAIN], Link(f"and {rest} more", f"up to {links[-1].words}", "")]
    body = []
    for i, link in enumerate(shown):
        y = i * (_BOX + _GAP) + 1
        if i:
            x = WIDTH // 2
            body.append(f'<path class="arrow" d="M{x} {y - _GAP + 1}V{y - 7}"/>')
            body.append(f'<path class="tip" d="M{x - 4} {y - 8}h8l-4 6z"/>')
        box = (
            f'<rect class="{"box" if i else "box root"}" x="1" y="{y}" width="{WIDTH - 2}" height="{_BOX}" rx="6"/>'
            f'<text class="name" x="{WIDTH / 2:g}" y="{y + 15}">{escape(_short(link.site))}</text>'
            f'<text class="x" x="{WIDTH / 2:g}" y="{y + 29}">{escape(link.words)}</text>'
        )
        body.append(f'<a href="#{escape(link.target)}">{box}</a>' if link.target else box)
    height = len(shown) * (_BOX + _GAP) - _GAP + 2
    return svg("chain", (WIDTH, height), title, "".join(body), role="group")


def _short(name: str, at_most: int = 46) -> str:
    if len(name) <= at_most:
        return name
    half = (at_most - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
