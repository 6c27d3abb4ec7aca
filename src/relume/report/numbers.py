"""Numbers as short as they can be read, the same on a page and in a terminal."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """A number as short as it can be read: 0.093, 1.2, 45, 1,200, 3.4e+09."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.2g}".replace("-", "−")
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("-", "−")


def share(value: float) -> str:
    """A share in percent, with two digits that count: 0.42 %, 4.5 %, 17 %, 250 %.

    >>> share(0.0449), share(0.0042), share(2.5)
    ('4.5 %', '0.42 %', '250 %')
    """
    if not math.isfinite(value):
        return "–"
    percent = 100 * value
    return f"{number(float(f'{percent:.2g}') if abs(percent) < 100 else round(percent))} %"


def span(first: int, last: int) -> str:
    """Steps of something that happened.

    >>> span(14, 35), span(7, 7)
    ('steps 14–35', 'step 7')
    """
    return f"step {first:,}" if first == last else f"steps {first:,}–{last:,}"


def units(n: int) -> str:
    """
    >>> units(1), units(1200)
    ('1 unit', '1,200 units')
    """
    return "1 unit" if n == 1 else f"{n:,} units"
