"""Standings of the contest: every activation's place, DReLU against each rival, and against the best on each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relume.lab.claims import contest
from relume.lab.claims.effects import all_of, over_tasks, values
from relume.lab.claims.measures import LOSS, TEST, Measure
from relume.lab.claims.members import CONTEST_TASKS, RIVALS
from relume.lab.claims.runs import Runs
from relume.lab.stats import Comparison, Interval, compare, holm, interval, profile, simultaneous
from relume.lab.stats.interval import Array
from relume.lab.stats.profiles import Profile

OURS = "drelu"
ACTIVATIONS = (OURS, *RIVALS)


@dataclass(frozen=True)
class Standing:
    """One activation: test points and training loss of its fresh runs, learning rates chosen, runs that diverged."""

    activation: str
    points: float
    loss: float
    rates: tuple[float, ...]
    diverged: int


@dataclass(frozen=True)
class OnTask:
    """DReLU on one task: its points, its place, and by how much it beats the best other one (all others, at once)."""

    task: str
    ours: Interval
    place: int
    best: str
    bests: Interval
    difference: Interval


def scores(runs: Runs, activation: str, measure: Measure = TEST) -> Array:
    """Of the fresh runs, float64 [seeds, tasks]."""
    return np.stack([values(runs, contest.fresh(runs, task, activation), measure) for task in CONTEST_TASKS], 1)


def standings(runs: Runs) -> list[Standing]:
    """All activations, the best mean test points first."""
    found = []
    for name in ACTIVATIONS:
        fresh = [runs[m] for task in CONTEST_TASKS for m in contest.fresh(runs, task, name)]
        rates = tuple(contest.rate(runs, task, name) for task in CONTEST_TASKS)
        loss = float(np.exp(scores(runs, name, LOSS).mean() / 100))
        points = float(scores(runs, name).mean())
        found.append(Standing(name, points, loss, rates, sum(run.diverged for run in fresh)))
    return sorted(found, key=lambda standing: -standing.points)


def on_tasks(runs: Runs, measure: Measure = TEST) -> list[OnTask]:
    """DReLU on each task; intervals of differences hold at once for all rivals and tasks."""
    level = simultaneous(0.95, len(RIVALS) * len(CONTEST_TASKS))
    points = {name: scores(runs, name, measure) for name in ACTIVATIONS}
    found = []
    for column, task in enumerate(CONTEST_TASKS):
        mine = points[OURS][:, column]
        means = {name: float(points[name][:, column].mean()) for name in ACTIVATIONS}
        best = max(RIVALS, key=lambda name: means[name])
        place = 1 + sum(means[name] > means[OURS] for name in RIVALS)
        others = {name: over_tasks({task: mine - points[name][:, column]}, level) for name in RIVALS}
        own = interval(mine, "mean")
        bests = interval(points[best][:, column], "mean")
        found.append(OnTask(task, own, place, best, bests, all_of(others).overall))
    return found


def against_rivals(runs: Runs) -> list[tuple[str, Comparison, float]]:
    """By rival: DReLU's test points compared over all tasks, and the p-value by Holm's correction."""
    mine = scores(runs, OURS)
    found = [compare(mine, scores(runs, rival), resamples=1999) for rival in RIVALS]
    return list(zip(RIVALS, found, holm([comparison.p for comparison in found]).tolist(), strict=True))


def profiles(runs: Runs, activations: Sequence[str], thresholds: Sequence[float]) -> list[tuple[str, Profile]]:
    """Of test points over all tasks and seeds."""
    return [(name, profile(scores(runs, name), thresholds, band="bootstrap", resamples=200)) for name in activations]


def places_by_loss(runs: Runs) -> list[int]:
    """DReLU's place on each task by training loss."""
    means = {name: scores(runs, name, LOSS).mean(0) for name in ACTIVATIONS}
    return [1 + sum(bool(means[name][i] < means[OURS][i]) for name in RIVALS) for i in range(len(CONTEST_TASKS))]
