"""Trainings with planted causes, written as an outsider would: before and apart from the thresholds of the rules.

One file per kind of cause. `CASES` are for measuring while rules are mended; `HELD_BACK` for a figure at the end.
"""

from . import birth, drifts, gradients, hard, healthy, held, layers, mixed, shifts, steps  # noqa: F401
from .bench import CASES, HELD_BACK, Case

__all__ = ["CASES", "HELD_BACK", "Case"]
