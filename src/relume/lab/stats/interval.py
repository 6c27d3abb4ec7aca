"""`Interval`: an estimate with its confidence interval; and the checks that every function here makes of its input."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and where the true value lies, with this confidence.

    Attributes:
        estimate: of the quantity.
        low, high: ends of the interval.
        confidence: nominal: in this share of repetitions such an interval holds the true value.
        method: by which it was made.
        n: independent runs that it stands on (the smaller number, of two samples).

    >>> Interval(0.5, 0.25, 0.75) < Interval(1.0, 0.9, 1.1), 0.3 in Interval(0.5, 0.25, 0.75)
    (True, True)
    """

    estimate: float
    low: float
    high: float
    confidence: float = 0.95
    method: str = ""
    n: int = 0

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __lt__(self, other: Interval) -> bool:
        """Surely below: the intervals do not touch."""
        return self.high < other.low

    @property
    def width(self) -> float:
        """From end to end."""
        return self.high - self.low

    def map(self, increasing: Any) -> Interval:
        """The interval of an increasing function of the quantity."""
        estimate, low, high = (float(increasing(v)) for v in (self.estimate, self.low, self.high))
        return Interval(estimate, low, high, self.confidence, self.method, self.n)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{_short(self.estimate)} [{_short(self.low)}, {_short(self.high)}]"


def runs(scores: ArrayLike, what: str = "scores", least: int = 2) -> Array:
    """float64 [runs, tasks] of scores [runs] or [runs, tasks].

    Raises:
        ValueError: another shape, too few runs, values that are not finite.
    """
    found = np.asarray(scores, dtype=np.float64)
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or found.shape[1] < 1:
        raise ValueError(f"{what} has shape [runs] or [runs, tasks], not {list(np.shape(scores))}")
    if len(found) < least:
        raise ValueError(f"{what} needs at least {least} runs, and has {len(found)}")
    if not np.isfinite(found).all():
        bad = int((~np.isfinite(found)).sum())
        raise ValueError(
            f"{what} has {bad} of {found.size} values that are not finite: give a run that diverged the score of "
            "chance, or count it apart; leaving it out would flatter"
        )
    return found


def checked_confidence(confidence: float) -> float:
    """
    Raises:
        ValueError: not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    return float(confidence)


def _short(value: float) -> str:
    if abs(value) < 1e-12:  # what rounding leaves of zero
        return "0"
    return f"{value:.3g}" if math.isfinite(value) else str(value)
