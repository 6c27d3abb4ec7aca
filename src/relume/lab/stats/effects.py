"""How large a difference is, free of the metric's unit: probability of improvement, Cliff's delta, Cohen's d."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import ArrayLike

from relume.lab.stats.interval import Array, Interval, checked_confidence, runs
from relume.lab.stats.needs import stats


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Chance that a fresh run of ours scores higher than one of theirs, ties half; the mean of that over tasks.

    The estimate is that of rliable: Mann and Whitney's U / (n m). The interval is not its bootstrap, which shrinks to
    a point where all of ours beat all of theirs, but Newcombe's, which stays open there; over tasks the intervals are
    added in squares (Zou and Donner 2008).

    Args:
        ours, theirs: [runs] or [runs, tasks], higher is better; numbers of runs may differ.

    Returns:
        Interval, between 0 and 1; 0.5 is no difference.

    Raises:
        ValueError: shapes that don't fit.

    Source: Agarwal et al. 2021, section 4.4; Newcombe 2006, Statistics in Medicine 25, 559, method 5.

    >>> print(probability_of_improvement([3, 4, 5, 6, 7], [1, 2, 3, 4, 5]))
    0.82 [0.447, 0.958]
    """
    x, y = _two(ours, theirs)
    level = checked_confidence(confidence)
    z = float(stats().norm.ppf((1 + level) / 2))
    shares = better(x.T[:, :, None], y.T[:, None, :])
    found = [(float(p), *newcombe(float(p), len(x), len(y), z)) for p in shares]
    mean = sum(p for p, _, _ in found) / len(found)
    low = mean - math.sqrt(sum((p - a) ** 2 for p, a, _ in found)) / len(found)
    high = mean + math.sqrt(sum((b - p) ** 2 for p, _, b in found)) / len(found)
    return Interval(mean, low, high, level, "newcombe", min(len(x), len(y)))


def cliffs_delta(ours: ArrayLike, theirs: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """P(ours > theirs) − P(ours < theirs): twice the probability of improvement, less 1.

    By custom 0.15 is small, 0.33 medium, 0.47 large (Romano et al. 2006).

    >>> round(cliffs_delta([3, 4, 5, 6, 7], [1, 2, 3, 4, 5]).estimate, 2)
    0.64
    """
    return probability_of_improvement(ours, theirs, confidence=confidence).map(lambda p: 2 * p - 1)


def cohens_d(ours: ArrayLike, theirs: ArrayLike, *, paired: bool = False, confidence: float = 0.95) -> Interval:
    """Difference of means in standard deviations: of both samples pooled, or with `paired` of the differences.

    The estimate is Hedges' unbiased one; the interval inverts the noncentral t distribution, exact for normal scores.

    Args:
        ours, theirs: [runs], of one task.

    Raises:
        ValueError: several tasks, unequal numbers when paired, scores that do not vary.

    Source: Hedges 1981; Cumming and Finch 2001.

    >>> cohens_d([3, 4, 5, 6, 7], [1, 2, 3, 4, 5]).low < 0 < cohens_d([3, 4, 5, 6, 7], [1, 2, 3, 4, 5]).estimate
    True
    """
    x, y = _two(ours, theirs)
    if x.shape[1] != 1:
        raise ValueError("cohens_d is of one task: standard deviations of several are not alike")
    if paired and len(x) != len(y):
        raise ValueError(f"paired scores are of the same seeds: {len(x)} and {len(y)} runs")
    level = checked_confidence(confidence)
    if paired:
        freedom, root = len(x) - 1, math.sqrt(len(x))
        spread = float((x - y).std(ddof=1))
    else:
        freedom, root = len(x) + len(y) - 2, math.sqrt(len(x) * len(y) / (len(x) + len(y)))
        spread = math.sqrt(((len(x) - 1) * float(x.var(ddof=1)) + (len(y) - 1) * float(y.var(ddof=1))) / freedom)
    if spread == 0:
        raise ValueError("the scores do not vary, so that a difference has no size in standard deviations")
    d = float(x.mean() - y.mean()) / spread
    t = d * root
    tails = ((1 + level) / 2, (1 - level) / 2)
    low, high = (_noncentrality(t, freedom, tail) / root for tail in tails)
    unbiased = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return Interval(d * unbiased, low, high, level, "noncentral t", min(len(x), len(y)))


def better(x: Array, y: Array) -> Array:
    """Share of pairs where x > y, ties half: over the last two axes of x [..., n, 1] and y [..., 1, m]."""
    found: Array = ((x > y) + 0.5 * (x == y)).mean((-2, -1))
    return found


def newcombe(share: float, n: int, m: int, z: float) -> tuple[float, float]:
    """Ends: where (θ − share)² = z² V(θ), with Hanley and McNeil's variance at θ, not at the estimate."""
    mean = (n + m) / 2

    def outside(theta: float) -> float:
        spread = 1 + (mean - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - share) ** 2 - z * z * theta * (1 - theta) * spread / (n * m)

    return _root(outside, share, 0.0), _root(outside, share, 1.0)


def _root(outside: Any, inside: float, far: float) -> float:
    """Bisection between a point inside the interval and one outside, or its end."""
    if outside(far) <= 0 and inside == far:
        return far
    for _ in range(60):
        middle = (inside + far) / 2
        if outside(middle) > 0:
            far = middle
        else:
            inside = middle
    return far


def _noncentrality(t: float, freedom: int, tail: float) -> float:
    """The noncentrality under which a t at most this large has the probability `tail`; it falls in it."""
    nct = stats().nct
    low, high = t - 10.0, t + 10.0
    while float(nct.cdf(t, freedom, low)) < tail:
        low -= 10
    while float(nct.cdf(t, freedom, high)) > tail:
        high += 10
    for _ in range(60):
        middle = (low + high) / 2
        if float(nct.cdf(t, freedom, middle)) > tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _two(ours: ArrayLike, theirs: ArrayLike) -> tuple[Array, Array]:
    x, y = runs(ours, "ours"), runs(theirs, "theirs")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"ours has {x.shape[1]} tasks and theirs {y.shape[1]}")
    return x, y
