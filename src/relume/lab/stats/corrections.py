"""Many comparisons at once: Holm's correction keeps false findings away, Benjamini and Hochberg's keeps them few."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from relume.lab.stats.interval import Array
from relume.lab.stats.needs import stats


def holm(p_values: ArrayLike) -> Array:
    """Adjusted p-values: with those below α called findings, the chance of any false one is at most α.

    Args:
        p_values: [comparisons], dependent in any way.

    Returns:
        float64 [comparisons], in the order given.

    Raises:
        ValueError: values outside [0, 1].

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = steps
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> Array:
    """Adjusted p-values: of those called findings below α, a share of at most α is false, on average.

    For comparisons that are independent or positively dependent.

    Source: Benjamini and Hochberg 1995, by `scipy.stats.false_discovery_control`.

    >>> benjamini_hochberg([0.01, 0.04, 0.03]).round(6).tolist()
    [0.03, 0.04, 0.04]
    """
    found: Any = stats().false_discovery_control(_checked(p_values), method="bh")
    return np.asarray(found, dtype=np.float64)


def simultaneous(confidence: float, intervals: int) -> float:
    """Confidence that each of so many intervals needs for all to hold at once (Bonferroni).

    >>> round(simultaneous(0.95, 5), 6)
    0.99
    """
    if intervals < 1:
        raise ValueError(f"at least one interval, not {intervals}")
    return 1 - (1 - confidence) / intervals


def _checked(p_values: ArrayLike) -> Array:
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values are a list of numbers in [0, 1], not {p_values!r}")
    return p
