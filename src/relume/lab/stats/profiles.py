"""`profile`: what share of runs scores above each threshold: the whole distribution at a look, with a band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from relume.lab.stats.interval import Array, checked_confidence, runs
from relume.lab.stats.location import bootstrap
from relume.lab.stats.proportions import proportion


@dataclass(frozen=True)
class Profile:
    """Share of runs above each threshold.

    Attributes:
        thresholds: [points], rising.
        share: [points], falling: mean over tasks of the share of runs that score more.
        low, high: [points], ends of the band.
        confidence: of the band, at each point by itself.
        method: of the band.
    """

    thresholds: Array
    share: Array
    low: Array
    high: Array
    confidence: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        arrays = {k: getattr(self, k).tolist() for k in ("thresholds", "share", "low", "high")}
        return {**arrays, "confidence": self.confidence, "method": self.method}


def profile(
    scores: ArrayLike,
    thresholds: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    band: Literal["wilson", "bootstrap"] = "wilson",
    resamples: int = 2000,
    seed: int = 0,
) -> Profile:
    """Performance profile: the tail distribution of scores over runs and tasks.

    Where one profile lies above another at every threshold, its way to train is better whatever score one asks for.

    Args:
        scores: [runs] or [runs, tasks], on one scale.
        thresholds: rising; default 101 points over the range of scores.
        confidence: of the band at each point.
        band: "wilson": of all runs as one sample; keeps its confidence near 0 and 1, where a bootstrap has a band of
            no width, and more than that where tasks differ much. "bootstrap": percentiles with each task resampled
            by itself, as published.
        resamples, seed: of the bootstrap.

    Source: Agarwal et al. 2021, arXiv 2108.13264, section 4.2; Dolan and Moré 2002.

    >>> profile([0.2, 0.5, 0.9, 0.9], [0.0, 0.5, 0.95]).share.tolist()
    [1.0, 0.5, 0.0]
    """
    values = runs(scores)
    level = checked_confidence(confidence)
    if band not in ("wilson", "bootstrap"):
        raise ValueError(f"band is wilson or bootstrap, not {band!r}")
    points = np.linspace(values.min(), values.max(), 101) if thresholds is None else np.asarray(thresholds, np.float64)
    if points.ndim != 1 or not len(points) or (np.diff(points) < 0).any():
        raise ValueError("thresholds are a list of rising numbers")
    above = (values[None] > points[:, None, None]).astype(np.float64)  # [points, runs, tasks]
    share = above.mean((1, 2))
    if band == "wilson":
        found = [proportion(int(hits), values.size, confidence=level) for hits in above.sum((1, 2))]
        low, high = np.array([f.low for f in found]), np.array([f.high for f in found])
    else:
        low, high = bootstrap(above, np.mean, level, "percentile", resamples, seed)
    return Profile(points, share, low, high, level, band)
