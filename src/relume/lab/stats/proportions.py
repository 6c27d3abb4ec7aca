"""How often something happened: shares of independent trials, and differences of shares, with intervals."""

from __future__ import annotations

import math
from typing import Literal

from relume.lab.stats.interval import Interval, checked_confidence
from relume.lab.stats.needs import stats


def proportion(
    hits: int, trials: int, *, confidence: float = 0.95, method: Literal["wilson", "clopper-pearson"] = "wilson"
) -> Interval:
    """Share of trials that were hits.

    "wilson" holds the nominal confidence on average over shares; "clopper-pearson" holds it at each share, and is
    longer for that.

    Args:
        hits: between 0 and `trials`.
        trials: independent ones, at least 1.

    Raises:
        ValueError: hits or trials out of range, another method.

    Source: Wilson 1927; Clopper and Pearson 1934. By `scipy.stats.binomtest`.

    >>> print(proportion(0, 20))
    0 [0, 0.161]
    """
    names = {"wilson": "wilson", "clopper-pearson": "exact"}
    if method not in names:
        raise ValueError(f"method is wilson or clopper-pearson, not {method!r}")
    if trials < 1 or not 0 <= hits <= trials:
        raise ValueError(f"hits lie between 0 and trials, which are at least 1: not {hits} of {trials}")
    level = checked_confidence(confidence)
    found = stats().binomtest(hits, trials).proportion_ci(level, method=names[method])
    return Interval(hits / trials, float(found.low), float(found.high), level, method, trials)


def difference_of_proportions(first: Interval, second: Interval) -> Interval:
    """First share minus second, of independent trials, from their Wilson intervals.

    Raises:
        ValueError: the two have different confidence, or are not by "wilson".

    Source: Newcombe 1998, Statistics in Medicine 17, 873, method 10.

    >>> print(difference_of_proportions(proportion(56, 70), proportion(48, 80)))
    0.2 [0.0524, 0.334]
    """
    if first.confidence != second.confidence or {first.method, second.method} != {"wilson"}:
        raise ValueError("a difference takes two Wilson intervals of one confidence")
    p, q = first, second
    difference = p.estimate - q.estimate
    low = difference - math.hypot(p.estimate - p.low, q.high - q.estimate)
    high = difference + math.hypot(p.high - p.estimate, q.estimate - q.low)
    return Interval(difference, low, high, p.confidence, "newcombe", min(p.n, q.n))
