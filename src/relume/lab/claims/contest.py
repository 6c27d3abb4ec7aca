"""The contest of activations: each with the same budget to choose its learning rate by validation scores, then judged
by the test scores of fresh seeds."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from relume.lab.claims.effects import over_tasks, values
from relume.lab.claims.measures import Measure
from relume.lab.claims.members import CONTEST_TASKS, FRESH_SEEDS, RATES, TUNING_SEEDS
from relume.lab.claims.members import contest as _member
from relume.lab.claims.question import Effect
from relume.lab.claims.runs import Runs
from relume.lab.member import Member


@functools.cache
def tuning(task: str, activation: str) -> tuple[tuple[Member, ...], ...]:
    """The members of each learning rate by which one is chosen."""
    return tuple(tuple(_member(task, activation, lr, seed) for seed in TUNING_SEEDS) for lr in RATES)


def rate(runs: Runs, task: str, activation: str) -> float:
    """The learning rate of the best mean validation score; the lower of equal ones."""
    means = [np.mean([runs[member].validation for member in members]) for members in tuning(task, activation)]
    return RATES[int(np.argmax(means))]


@functools.cache
def _fresh(task: str, activation: str, lr: float) -> tuple[Member, ...]:
    return tuple(_member(task, activation, lr, seed) for seed in FRESH_SEEDS)


def fresh(runs: Runs, task: str, activation: str) -> tuple[Member, ...]:
    """The members that are judged, at the rate chosen."""
    return _fresh(task, activation, rate(runs, task, activation))


def needs(runs: Runs, activations: Sequence[str]) -> list[Member]:
    """What a comparison of these needs; the fresh ones once all of their tuning has been run."""
    needed: list[Member] = []
    ready: list[Member] = []
    for task in CONTEST_TASKS:
        for activation in activations:
            trials = [member for members in tuning(task, activation) for member in members]
            needed += trials
            if all(member in runs for member in trials):
                ready += fresh(runs, task, activation)
    return needed + ready


def against(runs: Runs, ours: str, theirs: str, measure: Measure, confidence: float) -> Effect:
    """Ours minus theirs, seed by seed, as a mean over tasks; seeds have the same data and order of batches."""
    columns = {
        task: values(runs, fresh(runs, task, ours), measure) - values(runs, fresh(runs, task, theirs), measure)
        for task in CONTEST_TASKS
    }
    return over_tasks(columns, confidence)
