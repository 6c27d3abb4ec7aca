"""What is typical of several runs: mean, median, interquartile mean, each with an interval that holds at few runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from relume.lab.stats.interval import Array, Interval, checked_confidence, runs
from relume.lab.stats.needs import stats

Statistic = Literal["mean", "median", "iqm"]
Method = Literal["auto", "student", "expanded", "percentile", "bca"]
TRIM = 0.25


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: of the middle half of all values, runs of all tasks together.

    As rliable: ⌊n / 4⌋ values are left out at each end.

    Source: Agarwal et al. 2021, arXiv 2108.13264, section 4.3.

    >>> iqm([0, 1, 2, 3, 4, 5, 6, 700])
    3.5
    """
    return float(_iqm(runs(scores, least=1).ravel()))


def interval(
    scores: ArrayLike,
    statistic: Statistic | Callable[..., Any] = "iqm",
    *,
    confidence: float = 0.95,
    method: Method = "auto",
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """The statistic over runs, and its confidence interval; the runs of each task are one stratum.

    Methods, with what `benchmarks/coverage.py` measures of them at 10 runs, nominal 95 %:

    - "student": of a mean, Student's t; of an interquartile mean, the trimmed t of Tukey and McLaughlin (1963). For
      one task. "auto" takes it for means: 94.5 to 96.4 % where scores are symmetric, 92 % for lognormal ones, 90 % for
      exponential ones.
    - "expanded": percentiles of the stratified bootstrap, taken further out by √(n / (n − 1)) and t for normal
      quantiles, which makes up for the resample's spread being too small by that factor (Hesterberg 2015, section 5).
      "auto" takes it for all else: 94 to 97 % for interquartile means, whatever the distribution.
    - "percentile": the plain one, of Agarwal et al. 2021 and rliable. Up to 3 points less.
    - "bca": bias-corrected and accelerated (Efron 1987), by scipy; for skewed statistics of many runs. No better here.

    No method saves a mean over runs of which one in ten fails: a third of samples of 10 show no failure (65 % held).
    Take the interquartile mean, and count failures as a proportion.

    Args:
        scores: [runs] or [runs, tasks].
        statistic: "mean", "median", "iqm", or a function (values, axis) of all tasks' runs together; its population
            value is what the interval is for.
        confidence: nominal.
        method: see above.
        resamples: of the bootstrap.
        seed: of the resamples.

    Returns:
        Interval.

    Raises:
        ValueError: fewer than 2 runs, values that are not finite, a method that does not fit the statistic.
        MissingExtraError: scipy is not installed.

    >>> interval([0.91, 0.90, 0.93, 0.92, 0.90, 0.94], "mean").method
    'student'
    """
    values = runs(scores)
    level = checked_confidence(confidence)
    if method == "auto":
        method = "student" if values.shape[1] == 1 and statistic == "mean" else "expanded"
    if method not in ("student", "expanded", "percentile", "bca"):
        raise ValueError(f"method is auto, student, expanded, percentile or bca, not {method!r}")
    function = statistic if callable(statistic) else _STATISTICS.get(statistic)
    if function is None:
        raise ValueError(f"statistic is mean, median, iqm or a function of (values, axis), not {statistic!r}")
    estimate = float(function(values.ravel(), axis=-1))
    batch = values[None]
    if method == "student":
        if values.shape[1] != 1 or statistic not in ("mean", "iqm"):
            raise ValueError("method='student' is for the mean or iqm of one task: use method='expanded'")
        low, high = student(batch[..., 0], TRIM if statistic == "iqm" else 0.0, level)
    else:
        low, high = bootstrap(batch, function, level, method, resamples, seed)
    return Interval(estimate, float(low[0]), float(high[0]), level, method, len(values))


def student(batch: Array, trim: float, confidence: float) -> tuple[Array, Array]:
    """Ends of t intervals for trimmed means: batch [experiments, runs], two arrays [experiments].

    The standard error is the winsorized standard deviation / ((1 − 2 trim) √n), with n − 2 ⌊trim n⌋ − 1 degrees of
    freedom; without trimming, Student's.

    Source: Tukey and McLaughlin 1963; Wilcox, Introduction to Robust Estimation and Hypothesis Testing, section 4.3.
    """
    n = batch.shape[1]
    cut = int(trim * n)
    ordered = np.sort(batch, axis=1)
    centre = ordered[:, cut : n - cut].mean(1)
    winsorized = np.clip(batch, ordered[:, [cut]], ordered[:, [n - cut - 1]])
    kept = n - 2 * cut
    # (n − 1) s_w² / (h (h − 1)) is Yuen's form of the squared standard error: exact without trimming.
    error = winsorized.std(1, ddof=1) * np.sqrt((n - 1) / (kept * (kept - 1)))
    t = stats().t.ppf((1 + confidence) / 2, kept - 1)
    return centre - t * error, centre + t * error


def bootstrap(
    batch: Array, function: Callable[..., Any], confidence: float, method: str, resamples: int, seed: int
) -> tuple[Array, Array]:
    """Ends of bootstrap intervals, each task resampled by itself: batch [experiments, runs, tasks]."""
    scipy_stats = stats()
    experiments, n, tasks = batch.shape
    # Scores that do not vary have no jackknife to accelerate by: the interval is a point.
    constant = bool((np.ptp(batch, axis=1) == 0).all(-1).any())

    def pooled(*columns: Any, axis: int) -> Any:
        return function(np.concatenate(columns, axis=axis), axis=axis)

    found = scipy_stats.bootstrap(
        tuple(batch[..., task] for task in range(tasks)),
        pooled,
        n_resamples=resamples,
        batch=max(1, 2**22 // max(1, experiments * n * tasks)),
        vectorized=True,
        axis=-1,
        confidence_level=confidence,
        method="BCa" if method == "bca" and not constant else "percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    if method == "expanded":
        tail = scipy_stats.norm.cdf(-np.sqrt(n / (n - 1)) * scipy_stats.t.ppf((1 + confidence) / 2, tasks * (n - 1)))
        low, high = np.quantile(found.bootstrap_distribution, [tail, 1 - tail], axis=-1)
    return np.asarray(low), np.asarray(high)


def _iqm(values: Array, axis: int = -1) -> Any:
    n = values.shape[axis]
    cut = int(TRIM * n)
    if cut == 0:
        return values.mean(axis)
    ordered = np.partition(values, [cut, n - cut - 1], axis=axis)
    return np.take(ordered, range(cut, n - cut), axis=axis).mean(axis)


_STATISTICS: dict[Any, Callable[..., Any]] = {"mean": np.mean, "median": np.median, "iqm": _iqm}
