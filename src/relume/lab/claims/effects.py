"""How effects are computed of runs: differences of pairs, trends along a setting, associations within a setting.

A value is made for each seed and task. Tasks are averaged seed by seed, which gives independent values for Student's
interval; the tasks are a fixed set, so the interval says nothing of other tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from relume.lab.claims.measures import Measure
from relume.lab.claims.question import Effect
from relume.lab.claims.runs import Runs
from relume.lab.member import Member
from relume.lab.stats import Interval, interval
from relume.lab.stats.interval import Array
from relume.lab.stats.needs import stats

ByTask = Mapping[str, Sequence[Member]]


def values(runs: Runs, members: Sequence[Member], measure: Measure) -> Array:
    """float64 [members]."""
    return np.array([measure(runs[member]) for member in members], np.float64)


def paired(runs: Runs, ours: ByTask, theirs: ByTask, measure: Measure, confidence: float = 0.95) -> Effect:
    """Ours minus theirs, seed by seed, as a mean over tasks."""
    columns = {task: values(runs, ours[task], measure) - values(runs, theirs[task], measure) for task in ours}
    return over_tasks(columns, confidence)


def trend(
    runs: Runs, levels: Sequence[ByTask], at: Sequence[float], measure: Measure, confidence: float = 0.95
) -> Effect:
    """How a measure grows from level to level: each seed's least-squares slope on `at`, as a mean over tasks."""
    x = np.asarray(at, np.float64) - np.mean(at)
    columns = {}
    for task in levels[0]:
        y = np.stack([values(runs, level[task], measure) for level in levels], 1)  # [seeds, levels]
        columns[task] = y @ x / (x @ x)
    return over_tasks(columns, confidence)


def over_tasks(columns: Mapping[str, Array], confidence: float = 0.95) -> Effect:
    """Of a value for each seed of each task."""
    parts = tuple((task, interval(column, "mean", confidence=confidence)) for task, column in columns.items())
    together = interval(np.stack(list(columns.values()), 1).mean(1), "mean", confidence=confidence)
    return Effect(together, parts)


def association(
    runs: Runs, levels: Sequence[ByTask], x: Measure, y: Measure, per: float, confidence: float = 0.95
) -> Effect:
    """By how much y is higher where x is higher by `per`, among runs that differ by nothing but their seed.

    Both are centred within each level, so that what the level does to both is no part of it; least squares, one slope
    per task, and the mean of the slopes.
    """
    parts = []
    for task in levels[0]:
        columns = [(values(runs, level[task], x), values(runs, level[task], y)) for level in levels]
        dx = np.concatenate([a - a.mean() for a, _ in columns])
        dy = np.concatenate([b - b.mean() for _, b in columns])
        parts.append((task, _slope(dx, dy, len(dx) - len(levels) - 1, per, confidence)))
    found = [part for _, part in parts]
    mean = sum(f.estimate for f in found) / len(found)
    half = float(np.sqrt(sum((f.width / 2) ** 2 for f in found))) / len(found)
    return Effect(Interval(mean, mean - half, mean + half, confidence, "least squares", found[0].n), tuple(parts))


def _slope(dx: Array, dy: Array, freedom: int, per: float, confidence: float) -> Interval:
    spread = float(dx @ dx)
    if spread == 0:
        raise ValueError("what does not vary is associated with nothing")
    slope = float(dx @ dy) / spread
    rest = dy - slope * dx
    error = float(np.sqrt(rest @ rest / freedom / spread))
    half = float(stats().t.ppf((1 + confidence) / 2, freedom)) * error
    return Interval(per * slope, per * (slope - half), per * (slope + half), confidence, "least squares", len(dx))


def all_of(effects: Mapping[str, Effect], note: str = "") -> Effect:
    """That ours beats all of several, by its least effect: the interval of the smallest, from intervals that hold all
    at once."""
    overall = [effect.overall for effect in effects.values()]
    least = min(overall, key=lambda one: one.estimate)
    low, high = min(one.low for one in overall), min(one.high for one in overall)
    smallest = Interval(least.estimate, low, high, least.confidence, least.method, least.n)
    return Effect(smallest, tuple((name, effect.overall) for name, effect in effects.items()), note)
