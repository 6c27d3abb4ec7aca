"""A fall is read from rows written by hand."""

import torch

from relume.diagnose.death import deaths_of
from relume.diagnose.steps import Steps
from relume.diagnose.trace import COLUMNS, Series


def series_of(highs, steps=None, by="bias"):
    """One unit whose mean is its maximum less one; every change is laid to one part."""
    table = torch.zeros(len(highs), len(COLUMNS), 1, dtype=torch.float64)
    high = torch.tensor(highs, dtype=torch.float64)
    table[:, COLUMNS.index("max"), 0] = high
    table[:, COLUMNS.index("mean"), 0] = high - 1
    table[:, COLUMNS.index("std"), 0] = 0.5
    table[1:, COLUMNS.index(by), 0] = high.diff()
    return Series(tuple(steps or range(len(highs))), table)


def fall_of(series, died_at):
    (death,) = deaths_of(series, Steps(()), ("0",), torch.tensor([died_at]), torch.tensor([0]))
    return death.fall


def test_a_fall_begins_at_the_highest_row_and_ends_at_the_first_in_which_the_unit_is_dead():
    fall = fall_of(series_of([0.5, 2.0, 1.5, 1.0, 0.6, 0.3, -0.2, -5.0]), died_at=5)
    assert (fall.from_step, fall.to_step, fall.top, fall.bottom) == (1, 6, 2.0, -0.2)
    assert abs(fall.parts["bias"] + 2.2) < 1e-9
    assert abs(fall.mean_fall - 2.2) < 1e-9
    assert (fall.last_from, round(fall.last["bias"], 6), round(fall.steepness, 6)) == (3, -1.2, 1.0)
    assert abs(fall.suddenness - 1.2 / 2.2) < 1e-9


def test_the_last_steps_do_not_reach_back_beyond_the_highest_row():
    fall = fall_of(series_of([0.1, 0.2, 3.0, -1.0]), died_at=2)
    assert fall.last_from == 2
    assert fall.suddenness == 1.0
    assert fall.steepness == 8.0


def test_between_rows_far_apart_the_last_steps_are_one_interval():
    fall = fall_of(series_of([2.0, 1.0, -1.0], steps=[0, 50, 100]), died_at=50)
    assert (fall.last_from, fall.last_steps) == (50, 50)


def test_a_death_before_the_first_row_or_after_the_last_has_no_fall():
    assert fall_of(series_of([1.0, -1.0]), died_at=1) is None
    assert fall_of(series_of([-1.0, -1.0], steps=[5, 6]), died_at=3) is None


def test_a_row_that_is_not_finite_leaves_no_fall():
    assert fall_of(series_of([1.0, float("inf"), -1.0]), died_at=1) is None
