"""`compare`: two ways to train, over seeds, paired or not: difference, p-value and effect sizes in one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from relume.lab.stats.effects import cliffs_delta, cohens_d, probability_of_improvement
from relume.lab.stats.interval import Array, Interval, checked_confidence, runs
from relume.lab.stats.location import interval
from relume.lab.stats.needs import stats


@dataclass(frozen=True)
class Comparison:
    """Ours against theirs; all effects are positive where ours scores higher.

    Attributes:
        difference: of mean scores, in the metric's unit.
        p: of no difference, by permutation; two-sided.
        improvement: probability of improvement; 0.5 is no difference.
        delta: Cliff's.
        d: Cohen's, of the first task; None with several tasks or scores that do not vary.
        paired: were runs of one seed set against each other?
        runs: of each.
    """

    difference: Interval
    p: float
    improvement: Interval
    delta: Interval
    d: Interval | None
    paired: bool
    runs: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "difference": self.difference.to_dict(),
            "p": self.p,
            "improvement": self.improvement.to_dict(),
            "delta": self.delta.to_dict(),
            "d": self.d.to_dict() if self.d else None,
            "paired": self.paired,
            "runs": list(self.runs),
        }

    def __str__(self) -> str:
        how = "paired" if self.paired else "unpaired"
        return f"{self.difference}, p = {self.p:.2g} ({how}), better with probability {self.improvement}"


def compare(
    ours: ArrayLike,
    theirs: ArrayLike,
    *,
    paired: bool = True,
    confidence: float = 0.95,
    statistic: Literal["mean", "iqm"] = "mean",
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Compare two ways to train by their scores over seeds.

    Paired, run i of both had the same seed (data split, batch order, initial weights where they can be the same), and
    the difference is taken seed by seed. The p-value is by permutation (signs, or who is whose), exact where all can be
    tried; over several tasks each is permuted by itself.

    Args:
        ours, theirs: [runs] or [runs, tasks], higher is better; several tasks should have one scale.
        paired: see above.
        confidence: of all intervals.
        statistic: paired, of the differences: their mean, or their interquartile mean, which one run that failed
            can't turn. Unpaired, only "mean".
        resamples: permutations and bootstrap samples, at most.
        seed: of these.

    Raises:
        ValueError: shapes that don't fit, values that are not finite.

    >>> c = compare([0.91, 0.93, 0.92, 0.95, 0.94, 0.93], [0.90, 0.90, 0.91, 0.91, 0.92, 0.91])
    >>> print(c.difference, c.p)
    0.0217 [0.0094, 0.0339] 0.03125
    """
    x, y = runs(ours, "ours"), runs(theirs, "theirs")
    if x.shape[1] != y.shape[1] or (paired and len(x) != len(y)):
        raise ValueError(f"ours {list(x.shape)} and theirs {list(y.shape)} [runs, tasks] can't be compared")
    level = checked_confidence(confidence)
    if paired:
        difference = interval(x - y, statistic, confidence=level, resamples=resamples, seed=seed)
        p = signs(x - y, resamples, seed)
    else:
        if statistic != "mean":
            raise ValueError("unpaired runs are compared by their means: statistic='mean'")
        low, high = welch(x[None], y[None], level)
        gap = float(x.mean() - y.mean())
        difference = Interval(gap, float(low[0]), float(high[0]), level, "welch", min(len(x), len(y)))
        p = exchange(x, y, resamples, seed)
    d = None
    if x.shape[1] == 1 and (np.ptp(x - y) if paired else max(np.ptp(x), np.ptp(y))) > 0:
        d = cohens_d(x, y, paired=paired, confidence=level)
    return Comparison(
        difference,
        p,
        probability_of_improvement(x, y, confidence=level),
        cliffs_delta(x, y, confidence=level),
        d,
        paired,
        (len(x), len(y)),
    )


def signs(differences: Array, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value that differences [runs, tasks] lie about zero: by flipping their signs (Fisher 1935)."""
    flat = differences.ravel()
    if not flat.any():
        return 1.0
    mean = abs(flat.mean()) * (1 - 1e-12)
    if 2 ** len(flat) <= resamples:
        flips = 1.0 - 2.0 * ((np.arange(2 ** len(flat))[:, None] >> np.arange(len(flat))) & 1)
        return float((abs(flips @ flat) / len(flat) >= mean).mean())
    flips = np.random.default_rng(seed).integers(0, 2, (resamples, len(flat))) * 2.0 - 1.0
    as_far = int((abs(flips @ flat) / len(flat) >= mean).sum())
    return (as_far + 1) / (resamples + 1)  # the data themselves are one of the arrangements


def exchange(x: Array, y: Array, resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value that x and y [runs, tasks] are of one kind: by exchanging runs within each task.

    The statistic is Welch's t summed over tasks, so that unequal spreads do little harm (Chung and Romano 2013).
    """
    both = np.concatenate([x, y])
    if not np.ptp(both, axis=0).any():
        return 1.0
    rng = np.random.default_rng(seed)
    places = rng.permuted(np.tile(np.arange(len(both))[None, :, None], (resamples, 1, both.shape[1])), axis=1)
    drawn = np.take_along_axis(both[None], places, axis=1)
    as_far = int((_t(drawn, len(x)) >= _t(both[None], len(x)) * (1 - 1e-12)).sum())
    return (as_far + 1) / (resamples + 1)


def welch(x: Array, y: Array, confidence: float) -> tuple[Array, Array]:
    """Ends of Welch's intervals for the difference of means, over tasks: x, y [experiments, runs, tasks]."""
    tasks = x.shape[2]
    parts = [(v.var(1, ddof=1) / v.shape[1], v.shape[1] - 1) for v in (x, y)]
    error = sum(variance.sum(1) for variance, _ in parts)
    below = sum((variance**2).sum(1) / freedom for variance, freedom in parts)
    freedom = np.where(below > 0, error**2 / np.where(below > 0, below, 1), 1.0)
    t = stats().t.ppf((1 + confidence) / 2, freedom)
    gap = x.mean((1, 2)) - y.mean((1, 2))
    half = t * np.sqrt(error) / tasks
    return gap - half, gap + half


def _t(both: Array, n: int) -> Array:
    x, y = both[:, :n], both[:, n:]
    gap = abs((x.mean(1) - y.mean(1)).sum(1))
    error = np.sqrt((x.var(1, ddof=1) / x.shape[1] + y.var(1, ddof=1) / y.shape[1]).sum(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.nan_to_num(np.asarray(gap / error), nan=0.0, posinf=np.inf)
    return found
